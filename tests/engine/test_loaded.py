"""What is built and run for a request: no more than its layers need."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from service.engine.loaded import LoadedModel, load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime, Session
from service.errors import ShapeMismatch
from tests.benchmarks.resnet import random_resnet50, relus
from tests.builders import model as make
from tests.builders import put, reshaping_cnn, small_cnn
from tests.oracles import UncutGraph


class Watched(Runtime):
    """The real runtime, which also keeps what it was given to compile."""

    def __init__(self, optimization: str = "all") -> None:
        super().__init__(optimization=optimization)
        self.compiled: list[bytes] = []

    def compile(self, model: bytes, folder: Path, *, weight_bytes: int = 0) -> Session:
        self.compiled.append(model)
        return super().compile(model, folder, weight_bytes=weight_bytes)


def loaded(file: Path, optimization: str = "all") -> tuple[LoadedModel, Watched]:
    runtime = Watched(optimization)
    return load("m", "1", file, file.parent, runtime, PlanCache(1 << 30)), runtime


def nodes(model: bytes) -> int:
    return len(onnx.ModelProto.FromString(model).graph.node)


def test_an_early_layer_builds_a_few_nodes_of_resnet_50(tmp_path: Path) -> None:
    file = random_resnet50(tmp_path / "resnet50.onnx")
    model, runtime = loaded(file)
    whole = nodes(runtime.compiled[0])
    second = model.layers().select([relus(file)[1]])
    values = model.run(np.zeros((1, 3, 224, 224), np.float32), second)
    assert values[relus(file)[1]].shape == (1, 64, 56, 56)
    assert nodes(runtime.compiled[-1]) == 7  # Conv BN Relu MaxPool Conv BN Relu
    assert whole > 170
    assert len(runtime.compiled) == 2


def test_asking_again_builds_nothing(tmp_path: Path) -> None:
    model, runtime = loaded(put(tmp_path, "m", small_cnn()))
    layers = model.layers().select(["stem/relu"])
    for _ in range(3):
        model.run(np.zeros((1, 3, 32, 32), np.float32), layers)
    assert len(runtime.compiled) == 2


def test_the_input_alone_runs_nothing(tmp_path: Path) -> None:
    model, runtime = loaded(put(tmp_path, "m", small_cnn()))
    tensor = np.ones((1, 3, 8, 8), np.float32)
    assert model.run(tensor, model.layers().select(["image"]))["image"] is tensor
    assert len(runtime.compiled) == 1


@pytest.mark.parametrize(("layer", "batched"), [("relu", True), ("vector", False)])
def test_a_fixed_batch_is_freed_only_where_it_gives_what_single_runs_give(
    tmp_path: Path, layer: str, batched: bool
) -> None:
    file = put(tmp_path, "m", reshaping_cnn())
    model, runtime = loaded(file, "off")
    layers = model.layers().select([layer])
    if layers[0].batch_axis is None:
        pytest.fail("the batch axis of this layer is known")
    images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    values = model.run(images, layers)[layer]
    alone = [UncutGraph(file, [layer]).run({"image": image[None]})[layer] for image in images]
    assert np.array_equal(values, np.concatenate(alone))
    last = onnx.ModelProto.FromString(runtime.compiled[-1]).graph.input[0].type.tensor_type.shape.dim[0]
    assert (last.dim_param == "batch") is batched


def gained() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["out"]),
    ]
    return make(nodes, {"image": [1, 3, 8, 8], "gain": [1]}, ["out"])


def test_constants_feed_further_inputs(tmp_path: Path) -> None:
    file = put(tmp_path, "m", gained(), toml="[constants]\ngain = [2.0]\n")
    model = load("m", "1", file, tmp_path / "m", Runtime(), PlanCache(1 << 20))
    values = model.run(np.ones((1, 3, 8, 8), np.float32), model.layers().select(["out"]))
    assert (values["out"] == 2).all()


def test_further_inputs_without_constants_are_told(tmp_path: Path) -> None:
    model, _ = loaded(put(tmp_path, "m", gained()))
    assert model.image_input is None
    assert "[constants]" in model.no_image_reason


def test_a_layer_that_adds_the_images_up_takes_one_image_only(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["image"], ["relu"]),
        helper.make_node("ReduceSum", ["relu", "axis"], ["sum"], keepdims=1),
        helper.make_node("Add", ["relu", "sum"], ["mixed"]),
    ]
    axis = onnx.numpy_helper.from_array(np.array([0], np.int64), "axis")
    model, _ = loaded(put(tmp_path, "m", make(nodes, {"image": ["n", 3, 8, 8]}, ["mixed"], [axis])))
    with pytest.raises(ShapeMismatch, match="no batch axis"):
        model.run(np.ones((2, 3, 8, 8), np.float32), model.layers().select(["mixed"]))
