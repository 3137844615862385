"""Large weights stay in the file, and come back as they are."""

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from benchmarks.resnet import random_resnet50
from service.engine.graph import read
from service.engine.weight_file import LARGE_BYTES, WeightFile, without_weights
from service.errors import ModelFailed
from tests.builders import model, small_cnn, weight

LARGE = LARGE_BYTES // 4 + 1

MOST = 100_000


def with_weights(*sizes: int) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node("Relu", ["image"], ["out"])]
    weights = [weight(f"w{i}", size) for i, size in enumerate(sizes)]
    return model(nodes, {"image": [1]}, ["out"], weights)


def put_back(content: bytes) -> onnx.ModelProto:
    light, places = without_weights(content, MOST)
    proto = onnx.ModelProto.FromString(light)
    for tensor in proto.graph.initializer:
        if tensor.name in places:
            assert not tensor.HasField("raw_data")
            offset, length = places[tensor.name]
            tensor.raw_data = content[offset : offset + length]
    return proto


@settings(max_examples=40)
@given(st.lists(st.integers(1, 3 * LARGE), max_size=5))
def test_nothing_is_lost(sizes: list[int]) -> None:
    proto = with_weights(*sizes)
    assert put_back(proto.SerializeToString()) == proto


def test_every_light_and_real_file_comes_back_whole(light_models: dict[str, Path], test_data: Path) -> None:
    for path in (*light_models.values(), *sorted((test_data / "models/good").glob("*.onnx"))):
        content = path.read_bytes()
        assert put_back(content) == onnx.ModelProto.FromString(content)


def test_a_network_of_a_hundred_megabytes_is_a_small_message(tmp_path: Path) -> None:
    content = random_resnet50(tmp_path / "resnet50.onnx").read_bytes()
    light, places = without_weights(content, MOST)
    assert len(content) > 100_000_000
    assert len(light) < 1_000_000
    assert sum(length for _, length in places.values()) + len(light) >= len(content) - 2000


def test_only_the_first_of_two_weights_of_one_name_is_taken_out() -> None:
    proto = with_weights(LARGE, LARGE)
    proto.graph.initializer[1].name = "w0"
    light, places = without_weights(proto.SerializeToString(), MOST)
    assert list(places) == ["w0"]
    assert len(light) > LARGE_BYTES


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(ModelFailed):
        without_weights(content, MOST)


@settings(max_examples=100)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_by_somebody(data: st.DataObject, tmp_path_factory: object) -> None:
    content = with_weights(LARGE).SerializeToString()
    kept = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("cut") / "model.onnx"  # type: ignore[attr-defined]
    path.write_bytes(content[:kept])
    with pytest.raises(ModelFailed):
        read(path)


def test_a_file_changed_after_it_was_loaded_is_refused(tmp_path: Path) -> None:
    proto = with_weights(LARGE)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    _, places = without_weights(path.read_bytes(), MOST)
    weights = WeightFile(path, places)
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    assert np.array_equal(np.frombuffer(weights.read("w0"), np.float32), expected)
    path.write_bytes(proto.SerializeToString() + b" ")
    with pytest.raises(ModelFailed, match="changed after it was loaded"):
        weights.read("w0")


def test_a_file_replaced_by_another_goes_on_giving_its_own_weights(tmp_path: Path) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    path.write_bytes(with_weights(LARGE).SerializeToString())
    other.write_bytes(small_cnn().SerializeToString())
    weights = WeightFile(path, without_weights(path.read_bytes(), MOST)[1])
    before = weights.read("w0")
    other.rename(path)
    assert weights.read("w0") == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_file_is_closed_with_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_weights(LARGE).SerializeToString())
    before = open_files()
    weights = WeightFile(path, {})
    assert open_files() == before + 1
    del weights
    assert open_files() == before
