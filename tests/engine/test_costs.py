from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from service.engine.layers.axes import find_roles
from service.engine.layers.costs import find_costs
from service.engine.layers.listing import list_layers
from service.values import Layer
from tests.builders import known
from tests.engine.graphs import by_name, good, light, model, network, node


def rows(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, ArrayLike] | None,
    opset: int = 17,
) -> dict[str, Layer]:
    return by_name(list_layers(network(model(nodes, shape, ["y"], constants, opset))))


@pytest.mark.parametrize(
    ("name", "macs"),
    [("resnet50", 4.089e9), ("densenet121", 2.833e9), ("vgg19", 19.63e9), ("squeezenet", 0.349e9)],
)
def test_macs_are_those_published(name: str, macs: float) -> None:
    layers = list_layers(light(name))
    assert layers[-1].cumulative_macs == pytest.approx(macs, rel=1e-3)
    assert layers[-1].cumulative_macs == sum(known(layer.macs) for layer in layers)


def test_resnet50_has_the_parameters_that_torchvision_states() -> None:
    assert sum(layer.params for layer in list_layers(light("resnet50"))) == 25_557_032


@pytest.mark.parametrize("name", ["squeezenet1.1_upcast_fp32", "squeezenet1.1_qdq_int8"])
def test_quantising_changes_neither_macs_nor_parameters(name: str) -> None:
    layers = list_layers(good(name))
    assert sum(layer.params for layer in layers) == 1_235_496
    assert layers[-1].cumulative_macs == 349_151_936


def multiplications(
    height: int, width: int, kernel: int, stride: int, pad: int, c_in: int, c_out: int, groups: int
) -> int:
    """By walking over every output element and its window, borders of zeros included."""
    count = 0
    for _ in range(c_out):
        for _ in range(0, height + 2 * pad - kernel + 1, stride):
            for _ in range(0, width + 2 * pad - kernel + 1, stride):
                for _ in range(c_in // groups):
                    count += kernel * kernel
    return count


@settings(max_examples=30, deadline=None)
@given(
    st.integers(4, 8),
    st.integers(4, 8),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
    st.sampled_from([1, 2]),
)
def test_a_convolution_counts_each_multiplication(
    height: int, width: int, kernel: int, stride: int, pad: int, groups: int
) -> None:
    weights = np.ones((6, 4 // groups, kernel, kernel), np.float32)
    conv = node("Conv", ["x", "w"], ["y"], strides=[stride] * 2, pads=[pad] * 4, group=groups)
    row = rows([conv], [1, 4, height, width], {"w": weights})["y"]
    assert row.macs == multiplications(height, width, kernel, stride, pad, 4, 6, groups)
    assert row.params == weights.size


def test_a_transposed_convolution_counts_each_input_cell_once_a_weight() -> None:
    up = node("ConvTranspose", ["x", "w", "b"], ["y"], strides=[2, 2])
    constants = {"w": np.ones((3, 5, 2, 2), np.float32), "b": np.ones(5, np.float32)}
    row = rows([up], [1, 3, 4, 6], constants)["y"]
    assert (row.macs, row.params) == (3 * 4 * 6 * 5 * 2 * 2, 65)


def test_gemm_and_matmul_count_sums_of_products() -> None:
    nodes = [
        node("Gemm", ["x", "g", "b"], ["a"], transB=1),
        node("MatMul", ["a", "m"], ["y"]),
    ]
    constants = {
        "g": np.ones((7, 5), np.float32),
        "b": np.ones(7, np.float32),
        "m": np.ones((7, 2), np.float32),
    }
    found = rows(nodes, [1, 5], constants)
    assert [(found[n].macs, found[n].params) for n in ("a", "y")] == [(35, 42), (14, 14)]


def test_a_larger_batch_costs_no_more_for_one_image() -> None:
    conv = node("Conv", ["x", "w"], ["y"])
    constants = {"w": np.ones((2, 3, 1, 1), np.float32)}
    one, four = (rows([conv], [n, 3, 4, 4], constants)["y"] for n in (1, 4))
    assert (one.macs, one.bytes_per_image) == (four.macs, four.bytes_per_image) == (96, 128)


def test_quantised_convolutions_count_as_the_others() -> None:
    inputs = ["q", "s", "z", "w", "s", "z", "s", "z", "b"]
    nodes = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("QLinearConv", inputs, ["y"])]
    constants: dict[str, Any] = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "w": np.ones((2, 3, 1, 1), np.uint8),
        "b": np.ones(2, np.int32),
    }
    row = rows(nodes, [1, 3, 4, 4], constants)["y"]
    assert (row.macs, row.params, row.bytes_per_image) == (96, 8, 32)


def test_shared_work_is_counted_once() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Conv", ["a", "w"], ["b"]),
        node("Conv", ["a", "w"], ["c"]),
        node("Add", ["b", "c"], ["y"]),
    ]
    found = rows(nodes, [1, 1, 4, 4], {"w": np.ones((1, 1, 1, 1), np.float32)})
    assert [found[n].cumulative_macs for n in "abcy"] == [16, 32, 32, 48]
    assert [found[n].params for n in "abcy"] == [1, 0, 0, 0]


def test_every_cumulative_count_is_the_sum_over_the_ancestors() -> None:
    network = light("inception_v2")
    costs = find_costs(network, find_roles(network))
    needs: dict[str, set[str]] = {}
    for item in network.nodes:
        own = {item.makes[0]} if item.makes[0] in costs else set()
        needs.update(dict.fromkeys(item.makes, own.union(*(needs.get(n, ()) for n in item.reads))))
    for name, cost in costs.items():
        assert cost.cumulative_macs == sum(known(costs[n].macs) for n in needs[name])


def test_what_is_not_counted_makes_all_after_it_unknown() -> None:
    nodes = [node("Einsum", ["x"], ["a"], equation="nchw->nchw"), node("Relu", ["a"], ["y"])]
    found = rows(nodes, [1, 3, 4, 4], {})
    assert (found["a"].macs, found["y"].macs, found["y"].cumulative_macs) == (None, 0, None)


def test_running_statistics_numbers_and_shapes_are_no_parameters() -> None:
    nodes = [
        node("BatchNormalization", ["x", "s", "s2", "m", "v"], ["a"]),
        node("Mul", ["a", "one"], ["b"]),
        node("Add", ["b", "bias"], ["c"]),
        node("Reshape", ["c", "t"], ["y"]),
    ]
    four = {n: np.ones(4, np.float32) for n in ("s", "s2", "m", "v")}
    others: dict[str, Any] = {
        "one": np.float32(3),
        "bias": np.ones((4, 1, 1), np.float32),
        "t": np.array([1, -1]),
    }
    found = rows(nodes, [1, 4, 2, 2], {**four, **others})
    assert [found[n].params for n in "abcy"] == [8, 0, 4, 0]
