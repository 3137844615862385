from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike

from service.engine.layers.listing import list_layers
from service.values import Layer
from tests.builders import known
from tests.engine.graphs import by_name, good, light, model, network, node

EYE = {"w": np.ones((1, 1, 1, 1), np.float32)}


def rows(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, ArrayLike] | None = None,
    shape: Sequence[int | str] = (1, 1, 16, 16),
    outputs: Sequence[str] = ("y",),
) -> dict[str, Layer]:
    return by_name(list_layers(network(model(nodes, shape, outputs, {**EYE, **(constants or {})}))))


def stages(layers: Sequence[Layer]) -> list[tuple[int | None, Fraction]]:
    chosen = sorted((x for x in layers if x.stage is not None), key=lambda x: known(x.stage))
    assert [x.stage for x in chosen] == list(range(len(chosen)))
    return [(x.channels, known(x.reduction)[0]) for x in chosen]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50", [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]),
        ("densenet121", [(64, 2), (256, 4), (512, 8), (1024, 16), (1024, 32)]),
        ("vgg19", [(64, 1), (128, 2), (256, 4), (512, 8), (512, 16)]),
        ("inception_v1", [(64, 2), (192, 4), (480, 8), (832, 16), (1024, 32)]),
        ("inception_v2", [(64, 2), (192, 4), (320, 8), (576, 16), (1024, 32)]),
        ("shufflenet", [(24, 2), (136, 8), (272, 16), (544, 32)]),
    ],
)
def test_stages_are_those_that_timm_states(name: str, expected: object) -> None:
    assert stages(list_layers(light(name))) == expected


def test_a_quantised_network_has_the_stages_of_its_float_twin() -> None:
    twins = [list_layers(good(f"squeezenet1.1_{kind}")) for kind in ("upcast_fp32", "qdq_int8")]
    assert stages(twins[0]) == stages(twins[1]) == [(64, 2), (128, 4), (256, 8), (1000, 16)]
    assert {x.op for x in twins[1] if x.stage is not None} == {"DequantizeLinear"}


def test_nothing_after_the_reduction_falls_is_a_stage() -> None:
    layers = list_layers(good("style_candy"))
    assert stages(layers) == [(16, 1), (32, 2), (64, 4)]


def test_a_layer_that_a_shortcut_passes_by_is_no_stage() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Conv", ["a", "w"], ["b"]),
        node("Relu", ["b"], ["c"]),
        node("Add", ["c", "a"], ["d"]),
        node("MaxPool", ["d"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    assert [n for n, row in rows(nodes).items() if row.stage is not None] == ["d"]


def test_a_second_output_taps_off_what_comes_after_it() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Relu", ["c"], ["y"]),
    ]
    assert rows(nodes)["y"].stage == 1
    found = rows(nodes, outputs=("y", "b"))
    assert [found[n].stage for n in "by"] == [0, None]


def test_a_path_of_sizes_is_no_shortcut() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Shape", ["x"], ["s"]),
        node("Relu", ["a"], ["b"]),
        node("Reshape", ["b", "s"], ["y"]),
    ]
    nodes.insert(0, node("Conv", ["x", "w"], ["first"]))
    assert rows(nodes)["b"].stage == 0


def test_convolutions_stand_in_where_nothing_is_activated() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Conv", ["a", "w"], ["y"], strides=[2, 2])]
    assert [row.stage for row in rows(nodes).values()] == [0, 1]


def test_without_any_stage_the_outputs_are_the_stages_in_graph_order() -> None:
    nodes = [node("Gemm", ["x", "g"], ["a"]), node("Gemm", ["a", "g"], ["y"])]
    found = rows(nodes, {"g": np.ones((4, 4), np.float32)}, (1, 4), ("y", "a"))
    assert [found[n].stage for n in "ay"] == [0, 1]


def test_a_bias_is_no_merge() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "k"], ["b"]), node("Relu", ["b"], ["c"])]
    nodes.append(node("Add", ["c", "k"], ["y"]))
    found = rows(nodes, {"k": np.ones((1, 1, 1), np.float32)})
    assert [n for n, row in found.items() if row.stage is not None] == ["c"]


WRITTEN_OUT = {
    "silu": [node("Sigmoid", ["a"], ["g"]), node("Mul", ["a", "g"], ["y"])],
    "hard-swish as torch writes it": [
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero", "six"], ["c"]),
        node("Div", ["c", "six"], ["g"]),
        node("Mul", ["a", "g"], ["y"]),
    ],
    "hard-swish divided last": [
        node("Add", ["a", "three"], ["b"]),
        node("Clip", ["b", "zero", "six"], ["c"]),
        node("Mul", ["a", "c"], ["d"]),
        node("Div", ["d", "six"], ["y"]),
    ],
    "gelu": [
        node("Div", ["a", "three"], ["b"]),
        node("Erf", ["b"], ["c"]),
        node("Add", ["c", "six"], ["d"]),
        node("Mul", ["a", "d"], ["e"]),
        node("Mul", ["e", "three"], ["y"]),
    ],
    "mish": [
        node("Softplus", ["a"], ["b"]),
        node("Tanh", ["b"], ["g"]),
        node("Mul", ["a", "g"], ["y"]),
    ],
}
NUMBERS = {"three": np.float32(3), "six": np.float32(6), "zero": np.float32(0)}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_activations_written_out_are_activations(name: str) -> None:
    found = rows([node("Conv", ["x", "w"], ["a"]), *WRITTEN_OUT[name]], NUMBERS)
    assert found["y"].after_activation
    assert found["y"].stage == 0


def test_a_gate_from_elsewhere_is_no_activation() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Sigmoid", ["p"], ["g"]),
        node("Mul", ["a", "g"], ["y"]),
    ]
    assert not rows(nodes)["y"].after_activation


def test_activations_last_through_pooling_and_joining_but_not_through_sums() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Relu", ["a"], ["b"]),
        node("MaxPool", ["b"], ["c"], kernel_shape=[1, 1]),
        node("Concat", ["b", "c"], ["d"], axis=1),
        node("Concat", ["a", "c"], ["e"], axis=1),
        node("Add", ["b", "c"], ["f"]),
        node("Transpose", ["d"], ["g"], perm=[0, 2, 3, 1]),
        node("Concat", ["d", "e", "f"], ["y"], axis=1),
    ]
    found = rows(nodes)
    assert [n for n, row in found.items() if row.after_activation] == ["b", "c", "d", "g"]


def test_masks_and_indices_are_no_activations() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Dropout", ["a"], ["b", "mask"]),
        node("MaxPool", ["b"], ["y", "places"], kernel_shape=[2, 2]),
    ]
    assert [n for n, row in rows(nodes).items() if row.after_activation] == ["a", "b", "y"]


@pytest.mark.parametrize(
    ("zero", "expected"), [(np.uint8(0), True), (np.uint8(9), False), (np.int8(0), False)]
)
def test_numbers_clamped_at_zero_by_quantising_are_a_relu(zero: int, expected: object) -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    found = rows(nodes, {"s": np.float32(1), "z": zero})
    assert [found[n].after_activation for n in "aqy"] == [False, expected, expected]
