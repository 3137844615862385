"""Rows and columns that reshapes, transpositions and the like hide for a while, against what pixels change.

The oracle is the graph itself: a row of pixels is changed, and the rows of cells that change with it are
those whose receptive field holds it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike

from service.engine.graph import Graph
from service.engine.layers.listing import list_layers
from service.engine.runner import Runtime
from service.engine.shapes import describe
from service.values import Array, Layer
from tests.builders import known
from tests.engine.graphs import by_name, graph_of, model, node, run

SIDE = 24
RUNTIME = Runtime(optimization="off")
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "w": np.abs(RANDOM.normal(1, 0.1, (8, 3, 3, 3))).astype(np.float32),
    "w1": np.abs(RANDOM.normal(1, 0.1, (8, 8, 3, 3))).astype(np.float32),
    "one": np.ones(1, np.float32),
}
STEM = node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1])


def built(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, ArrayLike] | None = None, opset: int = 17
) -> onnx.ModelProto:
    used = {**WEIGHTS, **(constants or {})}
    reads = {name for item in nodes for name in item.input}
    return model(nodes, [1, 3, SIDE, SIDE], ["y"], {n: v for n, v in used.items() if n in reads}, opset)


def layer(proto: onnx.ModelProto) -> Layer:
    graph: Graph = graph_of(proto)
    return by_name(list_layers(describe(graph, RUNTIME, {"x": (1, 3, SIDE, SIDE)})))["y"]


def changed(proto: onnx.ModelProto, row: int, found: Layer) -> list[int]:
    """The rows of cells that change with a row of pixels."""
    x = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    other = x.copy()
    other[:, :, row] += 1
    rows = found.spatial_axes[0] if found.has_space else 2
    difference = np.abs(run(proto, other) - run(proto, x)) > 1e-7
    return sorted({int(place[rows]) for place in np.argwhere(difference)})


def assert_true(proto: onnx.ModelProto, status: str = "exact") -> Layer:
    """The layer's reduction and field agree with the cells that change."""
    found = layer(proto)
    assert found.reduction is not None
    assert found.receptive_field.status == status
    if found.receptive_field.start is None or status == "whole_input":
        return found
    start, size = found.receptive_field.start[0], known(found.receptive_field.size)[0]
    step = found.reduction[0]
    for row in (SIDE // 2, SIDE // 2 + 1, SIDE // 2 + 2):
        cells = changed(proto, row, found)
        expected = [u for u in range(SIDE) if start + u * step <= row <= start + u * step + size - 1]
        assert set(cells) <= set(expected) if status == "upper_bound" else cells == expected, row
    return found


def integers(**lists: Sequence[int]) -> dict[str, Array]:
    return {name: np.array(values, np.int64) for name, values in lists.items()}


def test_group_normalization_written_with_reshapes_sees_the_whole_input() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "groups"], ["g"]),
        node("InstanceNormalization", ["g", "scale", "bias"], ["n"]),
        node("Shape", ["a"], ["shape"]),
        node("Reshape", ["n", "shape"], ["y"]),
    ]
    constants = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    found = assert_true(built(nodes, {**constants, **integers(groups=[0, 2, -1])}), "whole_input")
    assert (found.layout, found.reduction) == ("NCHW", (2, 2))


def test_tokens_become_a_map_again() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "tokens"], ["t"]),
        node("Transpose", ["t"], ["l"], perm=[0, 2, 1]),
        node("MatMul", ["l", "mix"], ["m"]),
        node("Transpose", ["m"], ["c"], perm=[0, 2, 1]),
        node("Reshape", ["c", "map"], ["y"]),
    ]
    constants = {"mix": np.ones((8, 8), np.float32), **integers(tokens=[0, 8, -1], map=[0, 8, 12, 12])}
    assert assert_true(built(nodes, constants)).reduction == (2, 2)


def test_windows_are_put_together_again() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "split"], ["s"]),
        node("Transpose", ["s"], ["w6"], perm=[0, 2, 4, 1, 3, 5]),
        node("Reshape", ["w6", "windows"], ["ws"]),
        node("Relu", ["ws"], ["r"]),
        node("Reshape", ["r", "apart"], ["s2"]),
        node("Transpose", ["s2"], ["b"], perm=[0, 3, 1, 4, 2, 5]),
        node("Reshape", ["b", "map"], ["y"]),
    ]
    sizes = integers(
        split=[1, 8, 3, 4, 3, 4], windows=[9, 8, 4, 4], apart=[1, 3, 3, 8, 4, 4], map=[1, 8, 12, 12]
    )
    assert assert_true(built(nodes, sizes)).reduction == (2, 2)


def test_attention_within_windows_sees_its_window() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "split"], ["s"]),
        node("Transpose", ["s"], ["w6"], perm=[0, 2, 4, 3, 5, 1]),
        node("Reshape", ["w6", "windows"], ["q"]),
        node("Transpose", ["q"], ["k"], perm=[0, 2, 1]),
        node("MatMul", ["q", "k"], ["qk"]),
        node("Softmax", ["qk"], ["p"], axis=-1),
        node("MatMul", ["p", "q"], ["o"]),
        node("Reshape", ["o", "apart"], ["s2"]),
        node("Transpose", ["s2"], ["b"], perm=[0, 5, 1, 3, 2, 4]),
        node("Reshape", ["b", "map"], ["y"]),
    ]
    sizes = integers(
        split=[1, 8, 3, 4, 3, 4], windows=[9, 16, 8], apart=[1, 3, 3, 4, 4, 8], map=[1, 8, 12, 12]
    )
    found = assert_true(built(nodes, sizes), "upper_bound")
    assert found.reduction == (2, 2)


@pytest.mark.parametrize("steps", [1, 5])
def test_a_map_that_is_rolled_back_lies_where_it_did(steps: int) -> None:
    def roll(source: str, made: str, first: str, last: str) -> list[onnx.NodeProto]:
        return [
            node("Slice", [source, first, "end", "axis"], [f"{made}1"]),
            node("Slice", [source, "zero", first, "axis"], [f"{made}2"]),
            node("Concat", [f"{made}1", f"{made}2"], [made], axis=2),
        ]

    nodes = [STEM, *roll("a", "b", "k", "k"), node("Relu", ["b"], ["c"]), *roll("c", "y", "back", "back")]
    constants = integers(k=[steps], back=[12 - steps], zero=[0], end=[1 << 40], axis=[2])
    assert assert_true(built(nodes, constants)).reduction == (2, 2)


def test_a_rolled_map_keeps_its_reduction_and_no_field() -> None:
    nodes = [
        STEM,
        node("Slice", ["a", "k", "end", "axis"], ["b1"]),
        node("Slice", ["a", "zero", "k", "axis"], ["b2"]),
        node("Concat", ["b1", "b2"], ["y"], axis=2),
    ]
    found = layer(built(nodes, integers(k=[5], zero=[0], end=[1 << 40], axis=[2])))
    assert (found.reduction, found.receptive_field.status, found.centre) == ((2, 2), "unknown", None)


def test_a_map_that_is_flipped_twice_lies_where_it_did() -> None:
    def flip(source: str, made: str) -> onnx.NodeProto:
        return node("Slice", [source, "last", "first", "axis", "back"], [made])

    nodes = [STEM, flip("a", "b"), node("Relu", ["b"], ["c"]), flip("c", "y")]
    constants = integers(last=[-1], first=[-(1 << 40)], axis=[2], back=[-1])
    assert assert_true(built(nodes, constants)).reduction == (2, 2)


def test_a_pixel_shuffle_by_reshapes_has_finer_cells() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "apart"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", ["t", "map"], ["y"]),
    ]
    found = assert_true(built(nodes, integers(apart=[0, 2, 2, 2, 12, 12], map=[0, 2, 24, 24])), "upper_bound")
    assert (found.layout, found.reduction) == ("NCHW", (1, 1))


def test_a_pixel_unshuffle_by_reshapes_has_coarser_cells() -> None:
    nodes = [
        STEM,
        node("Reshape", ["a", "apart"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[0, 1, 3, 5, 2, 4]),
        node("Reshape", ["t", "map"], ["y"]),
    ]
    found = assert_true(built(nodes, integers(apart=[0, 8, 6, 2, 6, 2], map=[0, 32, 6, 6])))
    assert (found.layout, found.reduction, found.channels) == ("NCHW", (4, 4), 32)


def test_a_gate_that_is_expanded_lets_rows_and_columns_through() -> None:
    nodes = [
        STEM,
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Reshape", ["p", "line"], ["l"]),
        node("Conv", ["l", "w1d"], ["c"], pads=[1, 1]),
        node("Sigmoid", ["c"], ["s"]),
        node("Reshape", ["s", "single"], ["g"]),
        node("Shape", ["a"], ["shape"]),
        node("Expand", ["g", "shape"], ["e"]),
        node("Mul", ["a", "e"], ["y"]),
    ]
    constants = {"w1d": np.ones((1, 1, 3), np.float32), **integers(line=[0, 1, -1], single=[0, -1, 1, 1])}
    found = assert_true(built(nodes, constants), "whole_input")
    assert (found.layout, found.reduction, found.channels) == ("NCHW", (2, 2), 8)


def test_layer_normalization_between_transposes_is_of_one_place() -> None:
    nodes = [
        STEM,
        node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["t", "scale"], ["n"], axis=-1),
        node("Transpose", ["n"], ["y"], perm=[0, 3, 1, 2]),
    ]
    assert assert_true(built(nodes, {"scale": np.ones(8, np.float32)})).reduction == (2, 2)


def test_local_response_normalization_by_a_pooling_over_channels_is_of_one_place() -> None:
    nodes = [
        STEM,
        node("Mul", ["a", "a"], ["square"]),
        node("Unsqueeze", ["square", "axis"], ["five"]),
        node("AveragePool", ["five"], ["mean"], kernel_shape=[3, 1, 1], pads=[1, 0, 0, 1, 0, 0]),
        node("Squeeze", ["mean", "axis"], ["four"]),
        node("Add", ["four", "one"], ["scale"]),
        node("Div", ["a", "scale"], ["y"]),
    ]
    assert assert_true(built(nodes, integers(axis=[1]))).reduction == (2, 2)


def test_pads_that_the_graph_computes_shift_the_cells() -> None:
    nodes = [
        STEM,
        node("Concat", ["front", "back"], ["flat"], axis=0),
        node("Reshape", ["flat", "pairs"], ["two"]),
        node("Transpose", ["two"], ["turned"], perm=[1, 0]),
        node("Reshape", ["turned", "all"], ["pads"]),
        node("Pad", ["a", "pads"], ["p"]),
        node("Conv", ["p", "w1"], ["y"]),
    ]
    constants = integers(front=[0, 0, 0, 0], back=[1, 2, 1, 2], pairs=[4, 2], all=[-1])
    assert assert_true(built(nodes, constants)).reduction == (2, 2)


def test_a_bias_in_the_type_of_a_map_is_no_map() -> None:
    nodes = [STEM, node("CastLike", ["bias", "a"], ["b"]), node("Add", ["a", "b"], ["y"])]
    found = assert_true(built(nodes, {"bias": np.ones((8, 1, 1), np.float32)}))
    assert (found.layout, found.reduction) == ("NCHW", (2, 2))


def test_batch_normalization_that_trains_sees_the_whole_input() -> None:
    norm = node("BatchNormalization", ["a", "s", "b", "m", "v"], ["y", "rm", "rv"], training_mode=1)
    constants = {name: np.ones(8, np.float32) for name in "sbmv"}
    assert_true(built([STEM, norm], constants), "whole_input")


def test_a_range_to_quantise_by_is_that_of_the_whole_input() -> None:
    nodes = [STEM, node("DynamicQuantizeLinear", ["a"], ["y", "scale", "zero"])]
    assert_true(built(nodes), "whole_input")


def test_a_border_that_no_cell_sees_is_in_no_exact_field() -> None:
    """The last row of 24 is cut off, and the padding behind it stands for it."""
    nodes = [
        node("Slice", ["x", "zero", "end", "axes"], ["s"]),
        node("Conv", ["s", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    constants = integers(zero=[0, 0], end=[23, 23], axes=[2, 3])
    assert layer(built(nodes, constants)).receptive_field.status == "upper_bound"


def test_cells_at_regular_distances_are_followed() -> None:
    nodes = [STEM, node("Gather", ["a", "rows"], ["g"], axis=2), node("Gather", ["g", "rows"], ["y"], axis=3)]
    assert assert_true(built(nodes, integers(rows=[1, 4, 7, 10]))).reduction == (6, 6)
