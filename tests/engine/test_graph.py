"""Reading, checking and cutting ONNX files."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from service.engine.graph import read
from service.errors import ModelFailed
from tests.builders import FLOAT, model, reshaping_cnn, small_cnn, weight
from tests.oracles import UncutGraph


def written(folder: Path, proto: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def external(folder: Path, **entries: str) -> Path:
    """A model whose first weight lies in another file, as these entries say."""
    proto = small_cnn()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return written(folder, proto)


def cyclic() -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["image", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return model(nodes, {"image": [1]}, ["b"])


def made_twice() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["image"], ["a"]), helper.make_node("Relu", ["image"], ["a"])]
    return model(nodes, {"image": [1]}, ["a"])


def without_opset() -> onnx.ModelProto:
    proto = small_cnn()
    del proto.opset_import[:]
    return proto


@pytest.mark.parametrize(
    ("proto", "reason"),
    [(cyclic, "cycle"), (made_twice, "made twice"), (without_opset, "no opset")],
)
def test_an_ill_formed_graph_is_refused(
    tmp_path: Path, proto: Callable[[], onnx.ModelProto], reason: str
) -> None:
    with pytest.raises(ModelFailed, match=reason):
        read(written(tmp_path, proto()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x20\x00\x00\x00ORTM", "onnxruntime's own format"),
        (b"hello", "not ONNX"),
        (b"\x08\x08", "no graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFailed, match=reason):
        read(path)


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    content = small_cnn().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelFailed):
        read(path)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("missing.bin", "missing"),
        ("/etc/passwd", "own folder"),
        ("../../etc/passwd", "own folder"),
        ("link.bin", "link that leaves"),
        ("", "own folder"),
    ],
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str, reason: str) -> None:
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    with pytest.raises(ModelFailed, match=reason):
        read(external(tmp_path, location=location))


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-1"}, {"length": "1000000"}, {"offset": "x"}, {"offset": str(2**63), "length": "1"}],
)
def test_external_data_beyond_its_file_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(8 * 3 * 3 * 3 * 4))
    with pytest.raises(ModelFailed, match="external data"):
        read(external(tmp_path, location="weights.bin", **entries))


def test_the_digest_covers_the_external_data(tmp_path: Path) -> None:
    data = np.arange(8 * 3 * 3 * 3, dtype=np.float32).tobytes()
    (tmp_path / "weights.bin").write_bytes(data)
    path = external(tmp_path, location="weights.bin")
    assert read(path).digest == hashlib.sha256(path.read_bytes() + data).hexdigest()


def rewritten(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))
    os.utime(file, ns=(0, 0))


@pytest.mark.parametrize("change", [rewritten, Path.unlink])
def test_external_data_changed_after_it_was_loaded_is_never_used(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    data = np.arange(8 * 3 * 3 * 3, dtype=np.float32)
    (tmp_path / "weights.bin").write_bytes(data.tobytes())
    graph = read(external(tmp_path, location="weights.bin"))
    stored = graph.stored("w1")
    assert stored is not None
    assert np.array_equal(stored.ravel(), data)
    assert graph.cut(["stem/relu"])
    change(tmp_path / "weights.bin")
    for reading in (lambda: graph.cut(["stem/relu"]), lambda: graph.stored("w1")):
        with pytest.raises(ModelFailed, match=r"'weights\.bin' was changed after it was loaded"):
            reading()


def test_only_what_the_layers_need_is_cut(tmp_path: Path) -> None:
    graph = read(written(tmp_path, small_cnn()))
    part = onnx.ModelProto.FromString(graph.cut(["stem/relu"]))
    assert [node.op_type for node in part.graph.node] == ["Conv", "Relu"]
    assert [tensor.name for tensor in part.graph.initializer] == ["w1"]
    assert [value.name for value in part.graph.output] == ["stem/relu"]


def test_weights_listed_as_inputs_are_taken_out_of_them(tmp_path: Path) -> None:
    proto = small_cnn()
    proto.graph.input.append(helper.make_tensor_value_info("w1", FLOAT, [8, 3, 3, 3]))
    graph = read(written(tmp_path, proto))
    assert [spec.name for spec in graph.inputs] == ["image"]
    assert [value.name for value in onnx.ModelProto.FromString(graph.cut(["logits"])).graph.input] == [
        "image"
    ]


def test_what_a_subgraph_reads_from_outside_comes_along(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Mul", ["outer", "outer"], ["chosen"])],
        "b",
        [],
        [onnx.ValueInfoProto(name="chosen")],
    )
    nodes = [
        helper.make_node("Relu", ["image"], ["outer"]),
        helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["flag"]),
        helper.make_node("If", ["flag"], ["result"], then_branch=branch, else_branch=branch),
    ]
    zero = onnx.numpy_helper.from_array(np.array(0, np.float32), "zero")
    graph = read(written(tmp_path, model(nodes, {"image": [1, 2]}, ["result"], [zero])))
    assert len(graph.needed(["result"])) == 4


def test_a_freed_batch_is_dynamic(tmp_path: Path) -> None:
    graph = read(written(tmp_path, reshaping_cnn()))
    (value,) = onnx.ModelProto.FromString(graph.cut(["relu"], free_batch=True)).graph.input
    assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_every_cut_of_a_light_model_runs_and_is_smaller_than_the_whole(light_models: dict[str, Path]) -> None:
    graph = read(light_models["squeezenet"])
    sizes = [len(graph.needed([name])) for node in graph.nodes for name in node.makes]
    assert max(sizes) < len(graph.nodes) + 1
    assert sizes[0] == 1


def test_a_cut_computes_exactly_what_the_uncut_graph_computes(tmp_path: Path) -> None:
    path = written(tmp_path, small_cnn(1, 16, 16))
    image = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    names = [name for node in read(path).nodes for name in node.makes]
    expected = UncutGraph(path, names).run({"image": image})
    for name in names:
        part = tmp_path / "part.onnx"
        part.write_bytes(read(path).cut([name]))
        assert np.array_equal(UncutGraph(part, [name]).run({"image": image})[name], expected[name])


def test_weights_are_drawn_from_their_name_so_that_models_differ() -> None:
    assert weight("a", 3).raw_data != weight("b", 3).raw_data
