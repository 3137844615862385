"""Heads read out of graphs: bias plus the mean of the weighted map is the logit that the runtime computes."""

from collections import namedtuple
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from service.engine.graph import read
from service.engine.heads import Head, class_weights, find_head
from service.engine.layers.axes import find_roles
from service.errors import InvalidParameter, NotDrawable
from service.values import Array
from tests.builders import put
from tests.engine.graphs import every_tensor, good, good_graph, graph_of, light, model, node, session
from tests.oracles import UncutGraph

# Sums in float32, taken in another order than the runtime's.
SUMMATION = 1e-4
CHANNELS, CLASSES, SIDE = 6, 5, 7
RNG = np.random.default_rng(1)
Built = namedtuple("Built", "graph network shape")


def normal(*shape: int) -> Array:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


CONSTANTS: dict[str, Any] = {
    "kernel": normal(CHANNELS, 3, 3, 3),
    "w": normal(CLASSES, CHANNELS),
    "wt": normal(CHANNELS, CLASSES),
    "w11": normal(CLASSES, CHANNELS, 1, 1),
    "grouped": normal(4, CHANNELS // 2, 1, 1),
    "w33": normal(CLASSES, CHANNELS, 3, 3),
    "b": normal(CLASSES),
    "b2": normal(1, CLASSES),
    "square": normal(CHANNELS, CHANNELS),
    "c": normal(CHANNELS),
    "var": np.ones(CHANNELS, np.float32),
    "vector": np.array([1, -1]),
    "first": np.array([0]),
    "space": np.array([2, -1]),
    "column": np.array([-1, 1]),
    "scale": np.float32(0.01),
    "coarse": np.float32(0.05),
    "zero": np.int8(0),
    "q": RNG.integers(-100, 100, (CLASSES, CHANNELS)).astype(np.int8),
    "one": np.float32(1),
}


def built(tail: Sequence[onnx.NodeProto], outputs: Sequence[str] = ("logits",), opset: int = 17) -> Built:
    """A convolution, an activation that makes `map` (1, 6, 7, 7), and the end of a network."""
    stem = [node("Conv", ["x", "kernel"], ["conv"]), node("Relu", ["conv"], ["map"])]
    shape = (1, 3, SIDE + 2, SIDE + 2)
    graph = graph_of(model([*stem, *tail], shape, outputs, CONSTANTS, opset))
    return Built(graph, graph.network({"x": shape}), shape)


def pool(made: str = "pool", read: str = "map") -> onnx.NodeProto:
    return node("GlobalAveragePool", [read], [made])


POOLED = [pool(), node("Flatten", ["pool"], ["vec"])]
GEMM = node("Gemm", ["vec", "w", "b"], ["logits"], transB=1)
MATMUL = node("MatMul", ["vec", "wt"], ["logits"])
AVERAGE = {"kernel_shape": [SIDE, SIDE]}
NHWC = node("Transpose", ["map"], ["nhwc"], perm=[0, 2, 3, 1])

TAILS = {
    "Gemm with transB": [*POOLED, GEMM],
    "Gemm without transB": [*POOLED, node("Gemm", ["vec", "wt", "b"], ["logits"])],
    "Gemm with alpha and beta": [
        *POOLED,
        node("Gemm", ["vec", "w", "b"], ["logits"], transB=1, alpha=0.5, beta=3.0),
    ],
    "Gemm with transA": [
        pool(),
        node("Reshape", ["pool", "column"], ["vec"]),
        node("Gemm", ["vec", "wt", "b"], ["logits"], transA=1),
    ],
    "Gemm without a bias": [*POOLED, node("Gemm", ["vec", "w"], ["logits"], transB=1)],
    "Gemm with one number as bias": [*POOLED, node("Gemm", ["vec", "w", "one"], ["logits"], transB=1)],
    "Gemm of quantised weights": [
        *POOLED,
        node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        node("Gemm", ["vec", "dq"], ["logits"], transB=1),
    ],
    "MatMul": [*POOLED, MATMUL],
    "MatMul of transposed weights": [
        *POOLED,
        node("Transpose", ["w"], ["turned"]),
        node("MatMul", ["vec", "turned"], ["logits"]),
    ],
    "MatMul and Add": [
        *POOLED,
        node("MatMul", ["vec", "wt"], ["product"]),
        node("Add", ["b2", "product"], ["logits"]),
    ],
    "Gemm and Add": [
        *POOLED,
        node("Gemm", ["vec", "w", "b"], ["sum"], transB=1),
        node("Add", ["sum", "b2"], ["logits"]),
    ],
    "Conv on one cell": [pool(), node("Conv", ["pool", "w11", "b"], ["logits"])],
    "ReduceMean": [node("ReduceMean", ["map"], ["vec"], axes=[2, 3], keepdims=0), GEMM],
    "ReduceMean with negative axes": [node("ReduceMean", ["map"], ["vec"], axes=[-1, -2], keepdims=0), GEMM],
    "ReduceMean that keeps axes": [
        node("ReduceMean", ["map"], ["pool"], axes=[2, 3]),
        node("Reshape", ["pool", "vector"], ["vec"]),
        GEMM,
    ],
    "two ReduceMeans": [
        node("ReduceMean", ["map"], ["rows"], axes=[3], keepdims=0),
        node("ReduceMean", ["rows"], ["vec"], axes=[2], keepdims=0),
        GEMM,
    ],
    "AveragePool of the whole map": [
        node("AveragePool", ["map"], ["pool"], **AVERAGE),
        node("Reshape", ["pool", "vector"], ["vec"]),
        GEMM,
    ],
    "AveragePool that leaves its padding out": [
        node("AveragePool", ["map"], ["pool"], kernel_shape=[8, 8], pads=[0, 0, 1, 1]),
        node("Flatten", ["pool"], ["vec"]),
        GEMM,
    ],
    "AveragePool with auto_pad": [
        node("AveragePool", ["map"], ["pool"], kernel_shape=[9, 9], strides=[9, 9], auto_pad="SAME_UPPER"),
        node("Flatten", ["pool"], ["vec"]),
        GEMM,
    ],
    "NHWC": [NHWC, node("ReduceMean", ["nhwc"], ["vec"], axes=[1, 2], keepdims=0), MATMUL],
    "NHWC that keeps axes": [NHWC, node("ReduceMean", ["nhwc"], ["vec"], axes=[1, 2]), MATMUL],
    "Dropout and Identity": [
        pool("a"),
        node("Dropout", ["a"], ["d"]),
        node("Flatten", ["d"], ["e"]),
        node("Identity", ["e"], ["vec"]),
        GEMM,
    ],
    "Dropout before the pooling": [
        node("Dropout", ["map"], ["dropped"]),
        pool(read="dropped"),
        POOLED[1],
        GEMM,
    ],
    "a batch axis that went and came back": [
        node("Squeeze", ["map", "first"], ["taken"]),
        node("Unsqueeze", ["taken", "first"], ["back"]),
        pool(read="back"),
        POOLED[1],
        GEMM,
    ],
    "a 1x1 convolution before the pooling": [
        node("Conv", ["map", "w11", "b"], ["scores"]),
        node("Relu", ["scores"], ["positive"]),
        pool("logits", "positive"),
    ],
}


def law_residue(case: Built, values: Mapping[str, Array], head: Head) -> float:
    """The largest difference between the logits and the formula, over all layers and classes."""
    roles = find_roles(case.network)
    logits = values[head.logits].reshape(-1)
    residues = []
    for name in head.layers:
        maps = np.moveaxis(values[name], roles[name].index("C"), 1)[0].astype(np.float64)
        for target in range(len(head.weights)):
            weights = class_weights(head, name, target)
            per_place = np.tensordot(weights, maps, 1)
            residues.append(abs(head.bias[target] + per_place.mean() - logits[target]))
    return np.max(residues)


def run_all(case: Built) -> dict[str, Array]:
    """Every tensor of a small graph, for noise as image."""
    runner = session(every_tensor(case.graph))
    names = [value.name for value in runner.get_outputs()]
    x = np.random.default_rng(0).normal(0, 1, case.shape).astype(np.float32)
    return dict(zip(names, runner.run(names, {"x": x}), strict=True))


@pytest.mark.parametrize("tail", TAILS)
def test_bias_and_mean_of_the_class_map_are_the_logit(tail: str) -> None:
    case = built(TAILS[tail])
    head = find_head(case.graph, case.network)
    assert head.logits == "logits"
    assert (head.weights.dtype, head.bias.dtype) == (np.float32, np.float32)
    assert law_residue(case, run_all(case), head) < SUMMATION


def test_a_quantised_vector_moves_the_logits_by_its_rounding_alone() -> None:
    tail = [
        *POOLED,
        node("QuantizeLinear", ["vec", "coarse", "zero"], ["quantised"]),
        node("DequantizeLinear", ["quantised", "coarse", "zero"], ["rounded"]),
        node("Gemm", ["rounded", "w", "b"], ["logits"], transB=1),
    ]
    case = built(tail)
    head = find_head(case.graph, case.network)
    bound = CONSTANTS["coarse"] / 2 * np.abs(head.weights).sum(axis=1).max()
    assert 0 < law_residue(case, run_all(case), head) < bound + SUMMATION


@pytest.mark.parametrize("squash", ["Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten"])
def test_what_follows_the_logits_is_left_out(squash: str) -> None:
    case = built([*POOLED, GEMM, node(squash, ["logits"], ["end"])], ["end"])
    assert find_head(case.graph, case.network).logits == "logits"


def test_layers_that_equal_the_pooled_one_are_named() -> None:
    tail = [
        node("Dropout", ["map"], ["dropped"]),
        node("Transpose", ["dropped"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Identity", ["nhwc"], ["same"]),
        node("ReduceMean", ["same"], ["vec"], axes=[1, 2], keepdims=0),
        MATMUL,
    ]
    case = built(tail)
    assert find_head(case.graph, case.network).layers == ("same", "nhwc", "dropped", "map")


def test_only_a_widening_cast_keeps_values() -> None:
    tail = [node("Cast", ["map"], ["half"], to=10), node("Cast", ["half"], ["wide"], to=1)]
    case = built([*tail, pool(read="wide"), POOLED[1], GEMM])
    assert find_head(case.graph, case.network).layers == ("wide", "half")


def test_the_channels_of_a_fully_convolutional_network_are_the_classes() -> None:
    case = built(TAILS["a 1x1 convolution before the pooling"])
    head = find_head(case.graph, case.network)
    assert head.layers == ("positive",)
    np.testing.assert_array_equal(head.weights, np.eye(CLASSES))


NORMALISED = [
    pool(),
    node("BatchNormalization", ["pool", "c", "c", "c", "var"], ["normal"]),
    node("Flatten", ["normal"], ["vec"]),
    GEMM,
]
REFUSED = {
    "which BatchNormalization made": NORMALISED,
    "which Relu made": [*POOLED[:1], node("Relu", ["pool"], ["a"]), node("Flatten", ["a"], ["vec"]), GEMM],
    "which Gemm made": [
        pool(),
        node("Flatten", ["pool"], ["a"]),
        node("Gemm", ["a", "square"], ["vec"]),
        GEMM,
    ],
    "which GlobalMaxPool made": [
        node("GlobalMaxPool", ["map"], ["pool"]),
        node("Flatten", ["pool"], ["vec"]),
        GEMM,
    ],
    "which AveragePool made": [
        node("AveragePool", ["map"], ["pool"], kernel_shape=[8, 8], pads=[0, 0, 1, 1], count_include_pad=1),
        node("Flatten", ["pool"], ["vec"]),
        GEMM,
    ],
    "which ReduceMean made": [node("ReduceMean", ["map"], ["vec"], axes=[1, 2], keepdims=0), GEMM],
    "features and not classes": [pool("logits")],
    "joins two branches": [
        *POOLED,
        node("Gemm", ["vec", "w"], ["a"], transB=1),
        node("Gemm", ["vec", "w"], ["b_"], transB=1),
        node("Add", ["a", "b_"], ["logits"]),
    ],
    "a window or padding": [node("Conv", ["map", "w33"], ["logits"])],
    "which Mul made": [
        *POOLED,
        node("Gemm", ["vec", "w"], ["a"], transB=1),
        node("Mul", ["a", "b"], ["logits"]),
    ],
    "weights the file does not store": [
        *POOLED,
        node("Sqrt", ["wt"], ["root"]),
        node("MatMul", ["vec", "root"], ["logits"]),
    ],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_any_other_end_is_refused_with_its_reason(reason: str) -> None:
    case = built(REFUSED[reason])
    with pytest.raises(NotDrawable, match=reason):
        find_head(case.graph, case.network)


@pytest.mark.parametrize(
    "window",
    [
        {"kernel_shape": [6, 6]},
        {"kernel_shape": [6, 6], "strides": [7, 7]},
        {"kernel_shape": [7, 7], "dilations": [2, 2], "pads": [0, 0, 6, 6]},
    ],
)
def test_an_average_over_a_part_of_the_map_is_refused(window: dict[str, list[int]]) -> None:
    tail = [node("AveragePool", ["map"], ["pool"], **window), node("Conv", ["pool", "w11"], ["logits"])]
    case = built(tail, opset=19)
    with pytest.raises(NotDrawable, match="which AveragePool made"):
        find_head(case.graph, case.network)


def test_several_windows_that_each_hold_the_whole_map_are_refused() -> None:
    tail = [
        node("Conv", ["map", "w11"], ["scores"]),
        node("AveragePool", ["scores"], ["logits"], kernel_shape=[8, 8], pads=[0, 0, 2, 2]),
    ]
    case = built(tail)
    with pytest.raises(NotDrawable, match="which AveragePool made"):
        find_head(case.graph, case.network)


def test_a_linear_layer_over_groups_of_channels_is_refused() -> None:
    case = built([pool(), node("Conv", ["pool", "grouped"], ["logits"], group=2)])
    with pytest.raises(NotDrawable, match="one weight for each channel"):
        find_head(case.graph, case.network)


def test_axes_of_a_mean_may_be_an_input() -> None:
    tail = [node("ReduceMean", ["map", "space"], ["vec"], keepdims=0), GEMM]
    case = built(tail, opset=18)
    assert law_residue(case, run_all(case), find_head(case.graph, case.network)) < SUMMATION


def two_heads() -> Built:
    """One head on the map, one on a map behind it."""
    second = [
        node("Relu", ["conv"], ["other"]),
        pool("pool2", "other"),
        node("Conv", ["pool2", "w11"], ["logits2"]),
    ]
    return built([*POOLED, GEMM, *second], ["logits", "logits2"])


@pytest.mark.parametrize(("layer", "logits"), [("map", "logits"), ("other", "logits2"), (None, "logits")])
def test_of_several_heads_the_layers_own_is_taken(layer: str | None, logits: str) -> None:
    case = two_heads()
    assert find_head(case.graph, case.network, layer).logits == logits


def test_a_declared_output_without_a_head_does_not_hide_another() -> None:
    case = built([*POOLED, GEMM], ["map", "logits"])
    assert find_head(case.graph, case.network, "map").logits == "logits"


def test_another_layer_is_refused_and_the_pooled_one_named() -> None:
    case = built([*POOLED, GEMM])
    with pytest.raises(NotDrawable, match="'map'") as refusal:
        class_weights(find_head(case.graph, case.network), "conv", 0)
    assert refusal.value.extensions["suggestions"] == ["map"]


@pytest.mark.parametrize("target", [-1, CLASSES])
def test_a_target_beyond_the_classes_is_refused(target: int) -> None:
    case = built([*POOLED, GEMM])
    with pytest.raises(InvalidParameter, match="0 to 4") as refusal:
        class_weights(find_head(case.graph, case.network), "map", target)
    assert refusal.value.extensions["limit"] == CLASSES - 1


def randomised(path: Path) -> onnx.ModelProto:
    """One of the onnx package's graphs with noise in place of the weights that it computes from shapes."""
    proto = onnx.load(path)
    rng = np.random.default_rng(0)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for item in [n for n in proto.graph.node if n.op_type == "ConstantOfShape"]:
        shape = shapes[item.input[0]]
        spread = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        values = np.abs(rng.normal(1, 0.1, shape)) if len(shape) == 1 else rng.normal(0, spread, shape)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), item.output[0]))
        proto.graph.node.remove(item)
    return proto


@pytest.mark.parametrize(
    ("name", "pooled"),
    [("resnet50", "r171"), ("densenet121", "r907"), ("inception_v1", "r137"), ("shufflenet", "r198")],
)
def test_the_law_holds_for_whole_classifiers(
    light_models: dict[str, Path], tmp_path: Path, name: str, pooled: str
) -> None:
    path = put(tmp_path, name, randomised(light_models[name]))
    case = Built(read(path), light(name), (1, 3, 224, 224))
    head = find_head(case.graph, case.network)
    assert (head.layers[0], len(head.weights)) == (pooled, 1000)
    x = np.random.default_rng(0).normal(0, 1, case.shape).astype(np.float32)
    values = UncutGraph(path, [*head.layers, head.logits]).run({case.graph.inputs[0].name: x})
    assert law_residue(case, values, head) < SUMMATION * np.abs(values[head.logits]).max()


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("squeezenet1.1_upcast_fp32", "conv10_2"),
        ("squeezenet1.1_qdq_int8", "conv10_2_DequantizeLinear_Output"),
    ],
)
def test_squeezenets_classes_are_channels(test_data: Path, name: str, layer: str) -> None:
    case = Built(good_graph(name), good(name), (1, 3, 224, 224))
    head = find_head(case.graph, case.network)
    assert (head.layers, head.logits) == ((layer,), "pool10_1")
    np.testing.assert_array_equal(head.weights, np.eye(1000))
    path = test_data / "models" / "good" / f"{name}.onnx"
    x = np.random.default_rng(0).normal(0, 1, case.shape).astype(np.float32)
    values = UncutGraph(path, [layer, head.logits]).run({"data_0": x})
    assert law_residue(case, values, head) < SUMMATION


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar10_classifier_winml", "linear layer on '43', which Relu made"),
        ("mnist-8", "which MaxPool made"),
        ("yolox_nano", "which Concat made"),
        ("deeplabv3_mnv2_257_voc_nhwc", "which Upsample made"),
        ("superres_core_224", "no linear layer"),
    ],
)
def test_networks_without_a_pooled_linear_layer_are_refused(test_data: Path, name: str, reason: str) -> None:
    with pytest.raises(NotDrawable, match=reason):
        find_head(good_graph(name), good(name))
