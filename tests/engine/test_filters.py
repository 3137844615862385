"""The filters of layers: which convolution, which values, in which order."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from service.engine.filters import Filters, find_filters
from service.engine.graph import Graph
from service.engine.layers.listing import list_layers
from service.engine.nodes import Network
from service.errors import NoFilters
from service.values import Array
from tests.engine.graphs import GOOD, every_tensor, good, good_graph, graph_of, model, node, session

RNG = np.random.default_rng(2)
SHAPE = (1, 3, 9, 9)


def normal(*shape: int) -> Array:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


CONSTANTS: dict[str, Any] = {
    "w": normal(6, 3, 3, 3),
    "w2": normal(6, 6, 1, 1),
    "w1": normal(1, 3, 3, 3),
    "half": normal(6, 3, 3, 3).astype(np.float16),
    "c": normal(6),
    "var": np.ones(6, np.float32),
    "c11": normal(6, 1, 1),
    "mean": normal(1, 3, 1, 1),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "scale": np.float32(0.1),
    "zero": np.uint8(3),
    "q": RNG.integers(0, 255, (6, 3, 3, 3)).astype(np.uint8),
    "scales": RNG.uniform(0.01, 0.02, 6).astype(np.float32),
    "zeros": np.full(6, 128, np.uint8),
    "three": np.float32(3),
    "six": np.float32(6),
    "zero_f": np.float32(0),
    "square": normal(7, 7),
    "vector": np.array([1, -1]),
}
CONV = node("Conv", ["x", "w"], ["a"])


def network_of(nodes: Sequence[onnx.NodeProto], output: str) -> tuple[Graph, Network]:
    graph = graph_of(model(nodes, SHAPE, [output], CONSTANTS))
    return graph, graph.network({"x": SHAPE})


def filters(nodes: Sequence[onnx.NodeProto], layer: str = "y") -> Filters:
    return find_filters(*network_of(nodes, layer), layer)


BEHIND = {
    "the convolution itself": ([node("Conv", ["x", "w"], ["y"])]),
    "bias": [CONV, node("Add", ["c11", "a"], ["y"])],
    "normalisation": [CONV, node("BatchNormalization", ["a", "c", "c", "c", "var"], ["y"])],
    "normalisation by instance": [CONV, node("InstanceNormalization", ["a", "c", "c"], ["y"])],
    "activation": [CONV, node("LeakyRelu", ["a"], ["y"])],
    "PRelu": [CONV, node("PRelu", ["a", "c11"], ["y"])],
    "Clip": [CONV, node("Clip", ["a", "zero_f", "six"], ["y"])],
    "all of them": [
        CONV,
        node("Add", ["a", "c11"], ["b"]),
        node("BatchNormalization", ["b", "c", "c", "c", "var"], ["d"]),
        node("Relu", ["d"], ["e"]),
        node("Dropout", ["e"], ["y"]),
    ],
    "rounding": [
        CONV,
        node("QuantizeLinear", ["a", "scale", "zero"], ["b"]),
        node("DequantizeLinear", ["b", "scale", "zero"], ["y"]),
    ],
    "another order of axes": [
        CONV,
        node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        node("Add", ["b", "c"], ["y"]),
    ],
    "SiLU written out": [CONV, node("Sigmoid", ["a"], ["b"]), node("Mul", ["a", "b"], ["y"])],
    "hard-swish written out": [
        CONV,
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero_f", "six"], ["d"]),
        node("Mul", ["a", "d"], ["e"]),
        node("Div", ["e", "six"], ["y"]),
    ],
}


@pytest.mark.parametrize("step", BEHIND)
def test_filters_are_found_behind(step: str) -> None:
    found = filters(BEHIND[step])
    np.testing.assert_array_equal(found.weights, CONSTANTS["w"])
    assert (found.node, found.channels) == (BEHIND[step][0].name, 6)


REFUSED = {
    "MaxPool makes": [CONV, node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2])],
    "Concat makes": [CONV, node("Concat", ["a", "a"], ["y"], axis=1)],
    "Softmax makes": [CONV, node("Softmax", ["a"], ["y"], axis=1)],
    "MatMul makes": [CONV, node("MatMul", ["a", "square"], ["y"])],
    "Reshape makes": [CONV, node("Reshape", ["a", "vector"], ["y"])],
    "2 convolutions made, such as 'Conv_a' and 'Conv_b'": [
        CONV,
        node("Conv", ["a", "w2"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ],
    "GlobalAveragePool|Mul makes": [
        CONV,
        node("GlobalAveragePool", ["a"], ["b"]),
        node("Sigmoid", ["b"], ["d"]),
        node("Mul", ["a", "d"], ["y"]),
    ],
    "Add makes": [node("Conv", ["x", "w1"], ["a"]), node("Add", ["a", "c11"], ["y"])],
    "FusedConv makes": [CONV, node("FusedConv", ["x", "w", "c", "a"], ["y"], domain="com.microsoft")],
    "straight from 'x'": [node("Relu", ["x"], ["y"])],
    "ConvInteger .*does not store": [
        node("Cast", ["x"], ["b"], to=TensorProto.UINT8),
        node("ConvInteger", ["b", "q"], ["y"]),
    ],
    "Conv .*does not store": [node("Sqrt", ["w"], ["root"]), node("Conv", ["x", "root"], ["y"])],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_single_convolution_made_is_refused(reason: str) -> None:
    with pytest.raises(NoFilters, match=reason):
        filters(REFUSED[reason])


def test_only_the_first_output_carries_the_channels() -> None:
    nodes = [CONV, node("Dropout", ["a"], ["b", "y"])]
    with pytest.raises(NoFilters, match="Dropout makes 'y'"):
        filters(nodes)


@pytest.mark.parametrize("layer", ["x", "w", "nowhere"])
def test_what_no_node_makes_of_the_input_is_refused(layer: str) -> None:
    with pytest.raises(NoFilters, match=f"layer '{layer}'"):
        find_filters(*network_of([CONV], "a"), layer)


def test_strides_dilations_and_groups_are_told() -> None:
    made = node("Conv", ["x", "w1"], ["y"], strides=[2, 1], dilations=[1, 2])
    found = filters([made])
    assert (found.strides, found.dilations, found.groups, found.transposed) == ((2, 1), (1, 2), 1, False)


def test_what_is_left_out_is_one() -> None:
    found = filters([node("Conv", ["x", "w"], ["y"])])
    assert (found.strides, found.dilations, found.groups) == ((1, 1), (1, 1), 1)


def test_half_precision_stays_as_stored() -> None:
    found = filters([node("Cast", ["x"], ["b"], to=TensorProto.FLOAT16), node("Conv", ["b", "half"], ["y"])])
    assert found.weights.dtype == np.float16


def test_weights_of_a_quantised_convolution_are_dequantised_by_channel() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["b"]),
        node("QLinearConv", ["b", "scale", "zero", "q", "scales", "zeros", "scale", "zero"], ["y"]),
    ]
    expected = (CONSTANTS["q"].astype(np.float32) - 128) * CONSTANTS["scales"][:, None, None, None]
    np.testing.assert_array_equal(filters(nodes).weights, expected)


PREPARED = {
    "nothing": [],
    "normalising": [node("Sub", ["x", "mean"], ["b"]), node("Mul", ["b", "scale"], ["x'"])],
    "a border": [node("Pad", ["x", "pads"], ["x'"])],
    "rounding": [
        node("QuantizeLinear", ["x", "scale", "zero"], ["b"]),
        node("DequantizeLinear", ["b", "scale", "zero"], ["x'"]),
    ],
}


@pytest.mark.parametrize("step", PREPARED)
def test_a_convolution_reads_the_image_behind(step: str) -> None:
    read = "x'" if PREPARED[step] else "x"
    assert filters([*PREPARED[step], node("Conv", [read, "w"], ["y"])]).reads_image


def test_a_convolution_of_a_layer_does_not_read_the_image() -> None:
    assert not filters([CONV, node("Relu", ["a"], ["b"]), node("Conv", ["b", "w2"], ["y"])]).reads_image


def test_a_focus_layer_is_not_the_image(test_data: Path) -> None:
    found = find_filters(good_graph("yolox_nano"), good("yolox_nano"), "1177")
    assert (found.weights.shape[1], found.reads_image) == (12, False)


@pytest.mark.parametrize("groups", [1, 2])
def test_each_channel_of_a_transposed_convolution_has_its_filter(groups: int) -> None:
    """One cell of one input channel answers with the kernels that it feeds."""
    weights = normal(4, 3, 2, 2)
    made = node("ConvTranspose", ["x", "k"], ["y"], group=groups, kernel_shape=[2, 2])
    graph = graph_of(model([made], (1, 4, 1, 1), ["y"], {"k": weights}))
    found = find_filters(graph, graph.network({"x": (1, 4, 1, 1)}), "y")
    assert (found.transposed, found.weights.shape, found.channels) == (True, (4, 3, 2, 2), 3 * groups)
    runner = session(every_tensor(graph))
    for i in range(4):
        impulse = np.eye(4, dtype=np.float32)[i].reshape(1, 4, 1, 1)
        answer = runner.run(["y"], {"x": impulse})[0][0]
        group, place = divmod(i, 4 // groups)
        made_by_group = slice(group * 3, group * 3 + 3)
        np.testing.assert_allclose(answer[made_by_group], found.by_channel()[made_by_group, place], rtol=1e-6)


@cache
def proto(name: str) -> onnx.ModelProto:
    return onnx.load(good_graph(name).folder / f"{name}.onnx")


def stored(name: str) -> dict[str, Array]:
    """The weights of each node that convolves initializers, by the node's first output."""
    graph = proto(name).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    return {
        n.output[0]: numpy_helper.to_array(tensors[n.input[1]])
        for n in graph.node
        if n.op_type in ("Conv", "ConvTranspose") and n.input[1] in tensors
    }


@pytest.mark.parametrize("name", GOOD)
def test_every_layer_of_real_files_has_fitting_filters_or_none(test_data: Path, name: str) -> None:
    graph, network = good_graph(name), good(name)
    for layer in list_layers(network):
        try:
            found = find_filters(graph, network, layer.name)
        except NoFilters:
            assert layer.op not in ("Conv", "ConvTranspose", "BatchNormalization", "Sigmoid")
        else:
            assert found.channels == layer.channels


@pytest.mark.parametrize("name", GOOD)
def test_filters_of_real_convolutions_are_the_files_own(test_data: Path, name: str) -> None:
    graph, network = good_graph(name), good(name)
    for layer, expected in stored(name).items():
        np.testing.assert_array_equal(find_filters(graph, network, layer).weights, expected)


def test_filters_of_a_quantised_file_are_what_the_runtime_dequantises(test_data: Path) -> None:
    graph, network = good_graph("squeezenet1.1_qdq_int8"), good("squeezenet1.1_qdq_int8")
    convolutions = [n for n in graph.nodes if n.op == "Conv"]
    runner = session(every_tensor(graph))
    names = [n.inputs[1] for n in convolutions]
    values = runner.run(names, {"data_0": np.zeros((1, 3, 224, 224), np.float32)})
    for n, expected in zip(convolutions, values, strict=True):
        np.testing.assert_array_equal(find_filters(graph, network, n.outputs[0]).weights, expected)


@pytest.mark.parametrize("name", ["deeplabv3_mnv2_257_voc_nhwc", "squeezenet1.1_qdq_int8", "style_candy"])
def test_only_the_first_convolution_reads_the_image(test_data: Path, name: str) -> None:
    graph, network = good_graph(name), good(name)
    made = [n.outputs[0] for n in graph.nodes if n.op == "Conv"]
    reading = [layer for layer in made if find_filters(graph, network, layer).reads_image]
    assert reading == made[:1]
