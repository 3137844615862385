"""Files that plain onnxruntime runs and that exporters write: each loads, and every layer is exact."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from service.engine.catalog import Catalog
from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.errors import ConfigurationError, ImagesNotTaken, ModelFailed, ShapeMismatch
from tests.builders import model, put, weight
from tests.oracles import UncutGraph

RUNTIME = Runtime(optimization="off")
PLANS = PlanCache(1 << 26)
node = helper.make_node


def opened(folder: Path, proto: onnx.ModelProto, toml: str | None = None) -> LoadedModel:
    file = put(folder, "m", proto, toml=toml)
    return load("m", "1", file, folder / "m", RUNTIME, PLANS)


def assert_exact(found: LoadedModel, folder: Path, x: np.ndarray, name: str = "x") -> None:
    """Every layer alone, against the uncut graph, bit for bit."""
    layers = found.layers().layers
    whole = UncutGraph(folder / "m/1/model.onnx", [layer.name for layer in layers]).run({name: x})
    for layer in layers:
        actual = found.run(x, [layer])[layer.name]
        assert np.array_equal(actual, whole[layer.name], equal_nan=True), layer.name


def constant(name: str, value: object) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value), name)


def resizing(blocks: int = 14, size: object = 32) -> onnx.ModelProto:
    """An upsampling whose sizes come from the shape of the input, many layers later."""
    nodes = [node("Shape", ["x"], ["shape"]), node("Slice", ["shape", "two", "four", "zero"], ["sizes"])]
    nodes += [node("Conv", ["x", "w0"], ["r0"], strides=[2, 2], pads=[1, 1, 1, 1])]
    for i in range(blocks):
        nodes += [
            node("Conv", [f"r{i}", "w"], [f"c{i}"], pads=[1, 1, 1, 1]),
            node("Relu", [f"c{i}"], [f"r{i + 1}"]),
        ]
    nodes += [
        node("Resize", [f"r{blocks}", "", "", "sizes"], ["up"], axes=[2, 3], mode="linear"),
        node("Conv", ["up", "w"], ["head"], pads=[1, 1, 1, 1]),
        node("Relu", ["head"], ["last"]),
    ]
    integers = [constant(n, [v]) for n, v in (("two", 2), ("four", 4), ("zero", 0))]
    weights = [weight("w0", 4, 3, 3, 3), weight("w", 4, 4, 3, 3), *integers]
    return model(nodes, {"x": [1, 3, size, size]}, ["last"], weights, opset=18)


@pytest.mark.parametrize("size", [32, "side"])
def test_sizes_that_come_from_an_earlier_shape(tmp_path: Path, size: object) -> None:
    found = opened(tmp_path, resizing(size=size), "[input]\nsize = [32, 32]\n")
    assert_exact(found, tmp_path, np.random.default_rng(0).random((1, 3, 32, 32), np.float32))


def test_a_map_that_is_kept_serves_layers_behind_a_resize(tmp_path: Path) -> None:
    found = opened(tmp_path, resizing())
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    values = {"x": x}
    for name in ("head", "last"):
        for step in found.plan([found.layers().by_name[name]], values).steps:
            values |= found.run_step(step, x, values)
    expected = UncutGraph(tmp_path / "m/1/model.onnx", ["last"]).run({"x": x})["last"]
    assert np.array_equal(values["last"], expected)


def test_lists_of_sizes_are_computed_where_they_are_read(tmp_path: Path) -> None:
    found = opened(tmp_path, resizing())
    plan = found.plan([found.layers().by_name["last"]])
    assert len(plan.steps) > 1
    assert "sizes" not in {name for step in plan.steps for name in step.reads}


def merging(multiple: int) -> onnx.ModelProto:
    """A U-Net that runs only where both sides are multiples of a number."""
    target = constant("scales", np.array([1, 1, multiple, multiple], np.float32))
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1]),
        node("MaxPool", ["a"], ["b"], kernel_shape=[multiple] * 2, strides=[multiple] * 2),
        node("Resize", ["b", "", "scales"], ["up"], mode="nearest"),
        node("Concat", ["a", "up"], ["merged"], axis=1),
        node("Conv", ["merged", "w1"], ["out"]),
    ]
    weights = [weight("w0", 4, 3, 3, 3), weight("w1", 2, 8, 1, 1), target]
    return model(nodes, {"x": ["n", 3, "h", "w"]}, ["out"], weights, opset=18)


@pytest.mark.parametrize(("multiple", "size"), [(32, (224, 224)), (64, (256, 256)), (96, (192, 192))])
def test_free_sides_are_served_at_the_first_size_that_runs(
    tmp_path: Path, multiple: int, size: tuple[int, int]
) -> None:
    found = opened(tmp_path, merging(multiple))
    assert (found.recipe_at(None).size, found.size_source) == (size, "guessed")


def test_free_sides_are_served_at_the_size_of_the_manifest(tmp_path: Path) -> None:
    found = opened(tmp_path, merging(32), "[input]\nsize = [64, 96]\n")
    assert (found.recipe_at(None).size, found.size_source) == ((64, 96), "model.toml")


def convolved(channels: object, batch: object = "n", side: object = 16) -> onnx.ModelProto:
    count = channels if isinstance(channels, int) else 3
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"])]
    return model(nodes, {"x": [batch, channels, side, side]}, ["r"], [weight("w", 5, count, 3, 3)])


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_other_channels_than_those_of_a_picture_are_for_tensors(tmp_path: Path, channels: int) -> None:
    found = opened(tmp_path, convolved(channels))
    assert_exact(found, tmp_path, np.random.default_rng(0).random((1, channels, 16, 16), np.float32))
    with pytest.raises(ImagesNotTaken, match=f"{channels} channels"):
        found.recipe_at(None)


@pytest.mark.parametrize(
    ("channels", "toml", "color", "images"),
    [(4, 'color = "rgba"', "rgba", 1), (6, "images = 2", "rgb", 2), (13, "images = 13", "gray", 13)],
)
def test_the_manifest_says_how_images_fill_channels(
    tmp_path: Path, channels: int, toml: str, color: str, images: int
) -> None:
    recipe = opened(tmp_path, convolved(channels), f"[input]\n{toml}\n").recipe_at(None)
    assert (recipe.color, recipe.images) == (color, images)


def test_nodes_in_any_order_are_sorted(tmp_path: Path) -> None:
    proto = resizing()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    found = opened(tmp_path, proto)
    sorted_ = opened(tmp_path / "sorted", resizing())
    assert {x.name for x in found.layers().layers} == {x.name for x in sorted_.layers().layers}
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    last = found.layers().by_name["last"]
    assert np.array_equal(found.run(x, [last])["last"], sorted_.run(x, [last])["last"])


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    proto = model([node("Add", ["x", "nowhere"], ["y"], "sum")], {"x": [1, 3, 4, 4]}, ["y"])
    with pytest.raises(ModelFailed, match="node 'sum' reads 'nowhere', which nothing in the graph makes"):
        opened(tmp_path, proto)


def test_a_negative_side_is_free(tmp_path: Path) -> None:
    proto = convolved(3)
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        if dim.dim_param or dim.dim_value == 16:
            dim.dim_value = -1
    found = opened(tmp_path, proto)
    assert found.inputs[0].shape == (None, 3, None, None)
    assert found.recipe_at(None).size == (224, 224)


@pytest.mark.parametrize("images", [1, 4, 6])
def test_a_fixed_batch_of_several_runs_in_groups_of_it(tmp_path: Path, images: int) -> None:
    found = opened(tmp_path, convolved(3, batch=4))
    assert found.group == 4
    layer = found.layers().by_name["r"]
    assert layer.shape == (1, 5, 16, 16)
    x = np.random.default_rng(0).random((images, 3, 16, 16), np.float32)
    padded = np.concatenate([x, np.repeat(x[-1:], -images % 4, axis=0)])
    whole = UncutGraph(tmp_path / "m/1/model.onnx", ["r"])
    expected = np.concatenate([whole.run({"x": padded[i : i + 4]})["r"] for i in range(0, len(padded), 4)])
    assert np.array_equal(found.run(x, [layer])["r"], expected[:images])


def test_images_of_a_fixed_batch_that_change_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("ReduceMean", ["c"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["c", "mean"], ["y"]),
    ]
    proto = model(nodes, {"x": [4, 3, 8, 8]}, ["y"], [weight("w", 5, 3, 1, 1)])
    found = opened(tmp_path, proto)
    assert found.image_input is None
    assert "fixes its batch to 4" in found.no_image_reason


def test_a_layer_that_mixes_a_fixed_batch_is_refused_and_others_are_not(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("ReduceMean", ["c"], ["mean"], axes=[0], keepdims=1),
        node("Sub", ["c", "mean"], ["mixed"]),
        node("Relu", ["c"], ["y"]),
    ]
    proto = model(nodes, {"x": [4, 3, 8, 8]}, ["y"], [weight("w", 5, 3, 1, 1)])
    found, x = opened(tmp_path, proto), np.ones((2, 3, 8, 8), np.float32)
    assert len(found.run(x, [found.layers().by_name["y"]])["y"]) == 2
    with pytest.raises(ShapeMismatch):
        found.run(x, [found.layers().by_name["mixed"]])


def test_declared_outputs_that_read_no_input_are_answered(tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"]), node("Mul", ["stored", "stored"], ["made"])]
    stored = numpy_helper.from_array(np.arange(6, dtype=np.float32), "stored")
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["stored", "y", "made"], [weight("w", 5, 3, 1, 1), stored])
    found = opened(tmp_path, proto)
    table = found.layers()
    assert [layer.name for layer in table.layers] == ["y", "stored", "made"]
    values = found.run(np.ones((1, 3, 8, 8), np.float32), table.select(["outputs"]))
    assert np.array_equal(values["stored"], np.arange(6))
    assert np.array_equal(values["made"], np.arange(6.0) ** 2)


def test_layers_of_types_that_numpy_does_not_have_come_out_in_wider_ones(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Cast", ["c"], ["narrow"], to=TensorProto.FLOAT8E4M3FN),
        node("Cast", ["narrow"], ["back"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["back"], [weight("w", 5, 3, 1, 1)], opset=19)
    found = opened(tmp_path, proto)
    layers = [found.layers().by_name[name].widened() for name in ("narrow", "back")]
    values = found.run(np.random.default_rng(0).random((1, 3, 8, 8), np.float32), layers)
    assert values["narrow"].dtype.name == layers[0].dtype == "float32"
    assert np.array_equal(values["narrow"], values["back"])


def test_the_reason_of_a_failure_holds_the_runtimes_own_sentence(tmp_path: Path) -> None:
    proto = model([node("Concat", ["x", "x"], ["y"], "join")], {"x": [1, 3, 8, 8]}, ["y"])
    with pytest.raises(
        ModelFailed, match=r'In Node, .*"join", Concat.* Required attribute .axis. is missing'
    ):
        opened(tmp_path, proto)


def test_a_failure_names_no_path_of_the_runtimes_source(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("If", ["truth"], ["y"], then_branch=branch, else_branch=branch),
    ]
    truth = numpy_helper.from_array(np.array(True), "truth")
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], [weight("w", 5, 3, 1, 1), truth])
    with pytest.raises(ModelFailed, match="outer scope value being returned directly") as failure:
        opened(tmp_path, proto)
    assert ".cc" not in failure.value.detail


def load_model(name: str, version: str, file: Path, folder: Path) -> LoadedModel:
    return load(name, version, file, folder, RUNTIME, PLANS)


@pytest.mark.parametrize(
    ("file", "name"), [("ResNet 50 (v2).onnx", "ResNet-50-v2"), ("modèle[1].onnx", "modele-1")]
)
def test_a_name_is_made_from_a_files(tmp_path: Path, file: str, name: str) -> None:
    onnx.save(convolved(3), tmp_path / file)
    catalog = Catalog([tmp_path / file], load_model)
    assert catalog.get(name, None).identity.name == name
    assert catalog.load(name).identity.name == name


def test_two_files_of_one_name_are_named(tmp_path: Path) -> None:
    files = [tmp_path / "a b.onnx", tmp_path / "a(b).onnx"]
    for file in files:
        onnx.save(convolved(3), file)
    with pytest.raises(ConfigurationError, match=r"'a-b'.*a b\.onnx.*a\(b\)\.onnx"):
        Catalog(files, load_model)


@pytest.mark.parametrize(
    ("shape", "described"), [([1, 3, 8], "3 axes"), ([1, 3, 4, 8, 8], "5 axes"), (None, "declares no shape")]
)
def test_an_input_that_is_no_image_is_described(
    tmp_path: Path, shape: list[int] | None, described: str
) -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": shape or [1]}, ["y"])
    if shape is None:
        proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert described in opened(tmp_path, proto).no_image_reason


def test_a_pooling_that_rounds_up_has_the_shape_that_the_runtime_gives(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1),
        node("Relu", ["p"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 3, 31, 33]}, ["y"], [weight("w", 4, 3, 3, 3)])
    found, x = opened(tmp_path, proto), np.ones((1, 3, 31, 33), np.float32)
    whole = UncutGraph(tmp_path / "m/1/model.onnx", ["p", "y"]).run({"x": x})
    assert {n: found.layers().by_name[n].shape for n in whole} == {n: v.shape for n, v in whole.items()}


def test_shapes_that_depend_on_values_are_marked(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("NonZero", ["r"], ["places"]),
        node("Transpose", ["places"], ["y"]),
    ]
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], [weight("w", 4, 3, 1, 1)])
    table = opened(tmp_path, proto).layers().by_name
    assert [table[n].has_variable_shape for n in ("c", "r", "places", "y")] == [False, False, True, True]
    assert table["places"].shape == (4, None)


def test_a_computed_target_leaves_no_shape_unknown(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Shape", ["c"], ["shape"]),
        node("Gather", ["shape", "last"], ["side"]),
        node("Mul", ["side", "side"], ["area"]),
        node("Concat", ["lead", "area"], ["target"], axis=0),
        node("Reshape", ["c", "target"], ["y"]),
    ]
    integers = [constant("last", [3]), constant("lead", [1, -1])]
    proto = model(nodes, {"x": [1, 3, 8, 8]}, ["y"], [weight("w", 4, 3, 1, 1), *integers])
    assert opened(tmp_path, proto).layers().by_name["y"].shape == (1, 4, 64)


def test_a_network_that_runs_at_no_guessed_size_takes_tensors_and_says_what_to_do(tmp_path: Path) -> None:
    found = opened(tmp_path, merging(7 * 11))
    assert found.image_input is None
    assert "set size under [input]" in found.no_image_reason
    x = np.random.default_rng(0).random((1, 3, 77, 154), np.float32)
    layers = [found.layers_for({"x": x.shape}).by_name["out"]]
    expected = UncutGraph(tmp_path / "m/1/model.onnx", ["out"]).run({"x": x})["out"]
    assert np.array_equal(found.run(x, layers)["out"], expected)
