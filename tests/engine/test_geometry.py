"""Oracles: google-research/receptive_field's table, and impulses sent through onnxruntime."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument as Refused

from service.engine.layers.listing import list_layers
from service.values import Array, Layer
from tests.builders import known
from tests.engine.graphs import by_name, good, light, model, network, node, run

SIDE = 29


def layer(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = (1, 1, SIDE, SIDE),
    constants: Mapping[str, ArrayLike] | None = None,
    opset: int = 17,
    name: str = "y",
) -> Layer:
    return by_name(list_layers(network(model(nodes, shape, ["y"], constants, opset))))[name]


@pytest.mark.parametrize(
    ("name", "tensor", "size", "reduction"),
    [
        ("vgg19", "r36", 268, 32),
        ("vgg19", "r4", 6, 2),
        ("resnet50", "r171", 427, 32),
        ("densenet121", "r907", 2071, 32),
        ("inception_v1", "r137", 715, 32),
        ("inception_v2", "r504", 699, 32),
    ],
)
def test_fields_are_those_of_the_published_networks(
    name: str, tensor: str, size: int, reduction: int
) -> None:
    row = by_name(list_layers(light(name)))[tensor]
    assert row.receptive_field.size == (size, size)
    assert row.receptive_field.status == "exact"
    assert row.reduction == (reduction, reduction)


@st.composite
def one_step(
    draw: st.DrawFn, index: int, stretch: bool = True
) -> tuple[onnx.NodeProto | list[onnx.NodeProto], dict[str, Array]]:
    """A node that reads `t{index}` and makes `t{index + 1}`, with its constants.

    Without `stretch` those whose fields are reached wherever they lie inside the picture: after a
    slice, padding takes the place of pixels that are there.
    """
    ends = [f"t{index}"], [f"t{index + 1}"]
    kernel, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    pads = draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))
    kinds = ["conv", "same", "max", "average", "pad"]
    kind = draw(st.sampled_from(kinds + ["transposed", "resize", "mirror", "shuffle", "slice"] * stretch))
    w = f"w{index}"
    ones = np.ones((1, 1, kernel, kernel), np.float32)
    if kind == "conv":
        fixed = {"pads": pads, "dilations": [dilation] * 2}
        return node("Conv", [*ends[0], w], ends[1], strides=[stride] * 2, **fixed), {w: ones}
    if kind == "same":
        mode = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        return node("Conv", [*ends[0], w], ends[1], strides=[stride] * 2, auto_pad=mode), {w: ones}
    if kind in ("max", "average"):
        op = "MaxPool" if kind == "max" else "AveragePool"
        pads = [min(p, kernel - 1) for p in pads]
        return node(op, *ends, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads), {}
    if kind in ("pad", "mirror"):
        value = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]])
        mode = draw(st.sampled_from(["reflect", "edge"])) if kind == "mirror" else "constant"
        return node("Pad", [*ends[0], w], ends[1], mode=mode), {w: value}
    if kind == "slice":
        places = {f"a{index}": [pads[0]], f"b{index}": [-1], f"c{index}": [2], f"d{index}": [stride]}
        constants = {n: np.array(v, np.int64) for n, v in places.items()}
        return node("Slice", [*ends[0], *constants], ends[1]), constants
    if kind == "transposed":
        fixed = {"pads": [min(p, kernel - 1) for p in pads], "dilations": [dilation] * 2}
        return node("ConvTranspose", [*ends[0], w], ends[1], strides=[stride] * 2, **fixed), {w: ones}
    if kind == "shuffle":
        spread = node("Conv", [*ends[0], w], [f"s{index}"])
        up = node("DepthToSpace", [f"s{index}"], ends[1], blocksize=2)
        return [spread, up], {w: np.ones((4, 1, 1, 1), np.float32)}
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    place = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
    rounding = draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
    scale = draw(st.sampled_from([0.5, 1.5, 2.0, 3.0]))
    how = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": rounding}
    scales = np.array([1, 1, scale, scale], np.float32)
    return node("Resize", [*ends[0], "", w], ends[1], **how), {w: scales}


@st.composite
def chain(draw: st.DrawFn, stretch: bool = True) -> onnx.ModelProto:
    nodes, constants = [node("Conv", ["x", "w"], ["t0"])], {"w": np.ones((1, 1, 1, 1), np.float32)}
    count = draw(st.integers(1, 4))
    for i in range(count):
        made, stored = draw(one_step(i, stretch))
        nodes += made if isinstance(made, list) else [made]
        constants |= stored
    return model([*nodes, node("Identity", [f"t{count}"], ["y"])], ["n", 1, SIDE, SIDE], ["y"], constants)


@st.composite
def branches(draw: st.DrawFn) -> onnx.ModelProto:
    """Convolutions of stride 1 side by side that keep the size, padded unevenly, then one of stride 2."""
    nodes, constants, ends = [], {}, []
    for i in range(draw(st.integers(2, 3))):
        kernel, begin = draw(st.integers(1, 5)), draw(st.integers(0, 4))
        begin = min(begin, kernel - 1)
        constants[f"w{i}"] = np.ones((1, 1, kernel, kernel), np.float32)
        pads = [begin, begin, kernel - 1 - begin, kernel - 1 - begin]
        nodes.append(node("Conv", ["x", f"w{i}"], [f"b{i}"], pads=pads))
        ends.append(f"b{i}")
    join = draw(st.sampled_from(["Sum", "Concat"]))
    nodes.append(node(join, ends, ["j"], **({"axis": 1} if join == "Concat" else {})))
    constants["v"] = np.ones((1, len(ends) if join == "Concat" else 1, 3, 3), np.float32)
    nodes.append(node("Conv", ["j", "v"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1]))
    return model(nodes, ["n", 1, SIDE, SIDE], ["y"], constants)


def seen_rows(proto: onnx.ModelProto, axis: int) -> list[np.ndarray]:
    """For each cell along y (axis 2) or x (3), the input's rows or columns that change it."""
    impulses = np.zeros((SIDE, 1, SIDE, SIDE), np.float32)
    for i in range(SIDE):
        impulses[(i, 0, i) if axis == 2 else (i, 0, slice(None), i)] = 1
    changed = run(proto, impulses) != 0
    lit = changed.any(axis=(1, 5 - axis))
    return [np.flatnonzero(lit[:, u]) for u in range(lit.shape[1])]


def intervals(proto: onnx.ModelProto, axis: int) -> tuple[str, list[tuple[float, float, Array]]]:
    """Status and, for each cell, what the catalogue predicts and what is seen."""
    row = by_name(list_layers(network(proto, (1, 1, SIDE, SIDE))))["y"]
    field, i = row.receptive_field, axis - 2
    if field.size is None or row.reduction is None:
        return field.status, []
    try:
        cells = enumerate(seen_rows(proto, axis))
    except Refused:
        return field.status, []
    start = known(field.start)
    low = [(start[i] + u * float(row.reduction[i]), seen) for u, seen in cells if seen.size]
    return field.status, [(first, first + field.size[i] - 1, seen) for first, seen in low]


def fits(proto: onnx.ModelProto) -> bool:
    """The runtime refuses windows larger than what they read, and maps that vanish."""
    shapes = network(proto, (1, 1, SIDE, SIDE)).tensors.values()
    return all(size is not None and size > 0 for s in shapes for size in s.shape or ()) and all(
        s.shape is not None for s in shapes
    )


@settings(max_examples=150, deadline=None)
@given(chain(), st.sampled_from([2, 3]))
def test_a_cell_never_sees_beyond_its_field(proto: onnx.ModelProto, axis: int) -> None:
    if not fits(proto):
        return
    _, cells = intervals(proto, axis)
    for first, last, seen in cells:
        assert first - 1e-3 <= seen.min()
        assert seen.max() <= last + 1e-3


@settings(max_examples=100, deadline=None)
@given(st.one_of(chain(stretch=False), branches()), st.sampled_from([2, 3]))
def test_exact_fields_are_reached_at_both_ends(proto: onnx.ModelProto, axis: int) -> None:
    if not fits(proto):
        return
    status, cells = intervals(proto, axis)
    inside = [c for c in cells if c[0] >= 0 and c[1] <= SIDE - 1]
    if status == "exact":
        assert [(s.min(), s.max()) for _, _, s in inside] == [(a, b) for a, b, _ in inside]


ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
PLACES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_half_pixel_for_nn")
MODES = [*(("nearest", rounding) for rounding in ROUNDINGS), ("linear", "floor"), ("cubic", "floor")]


@pytest.mark.parametrize("scale", [0.4, 0.5, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("mode", "rounding"), MODES)
def test_every_way_to_resize_stays_within_its_field(
    mode: str, rounding: str, place: str, scale: float
) -> None:
    how = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": rounding}
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1]),
        node("Resize", ["a", "", "s"], ["y"], **how),
    ]
    scales = {"s": np.array([1, 1, scale, scale], np.float32)}
    status, cells = intervals(model(nodes, ["n", 1, SIDE, SIDE], ["y"], scales), 2)
    assert status == "upper_bound"
    assert cells
    for first, last, seen in cells:
        assert first - 1e-3 <= seen.min()
        assert seen.max() <= last + 1e-3


def test_most_random_graphs_are_judged() -> None:
    judged = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(chain())
    def count(proto: onnx.ModelProto) -> None:
        judged.append(fits(proto) and bool(intervals(proto, 2)[1]))

    count()
    assert sum(judged) > len(judged) / 2


def test_branches_with_other_centres_have_the_hull_of_their_fields() -> None:
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[3, 3], pads=[0, 0, 2, 2]),
        node("MaxPool", ["x"], ["b"], kernel_shape=[3, 3], pads=[2, 2, 0, 0]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    row = layer(nodes)
    assert (row.receptive_field.start, row.receptive_field.size) == ((-2, -2), (5, 5))
    assert row.centre == (0, 0)


def test_branches_of_different_jumps_have_no_geometry() -> None:
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1], strides=[2, 2]),
        node("MaxPool", ["x"], ["b"], kernel_shape=[15, 15]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    row = layer(nodes)
    assert row.shape == (1, 2, 15, 15)
    assert (row.reduction, row.centre, row.receptive_field.status) == (None, None, "unknown")


def test_instance_normalisation_sees_everything_and_keeps_its_place() -> None:
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        node("InstanceNormalization", ["a", "s", "s"], ["y"]),
    ]
    row = layer(nodes, constants={"s": np.ones(1, np.float32)})
    assert row.receptive_field.status == "whole_input"
    assert (row.receptive_field.size, row.receptive_field.start) == ((SIDE, SIDE), (0, 0))
    assert (row.reduction, row.centre) == ((2, 2), (Fraction(1, 2), Fraction(1, 2)))


def test_a_gated_map_sees_everything_and_keeps_its_place() -> None:
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Sigmoid", ["p"], ["g"]),
        node("Mul", ["g", "a"], ["y"]),
    ]
    row = layer(nodes)
    assert (row.receptive_field.status, row.reduction) == ("whole_input", (2, 2))
    pooled = layer(nodes, name="p")
    assert (pooled.receptive_field.status, pooled.reduction, pooled.centre) == ("whole_input", None, None)


@pytest.mark.parametrize("mode", ["asymmetric", "half_pixel"])
def test_doubling_by_repetition_keeps_centres_where_they_are(mode: str) -> None:
    rounding = "floor" if mode == "asymmetric" else "round_prefer_floor"
    how = {"coordinate_transformation_mode": mode, "nearest_mode": rounding}
    nodes = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Resize", ["a", "", "s"], ["y"], **how),
    ]
    row = layer(nodes, constants={"s": np.array([1, 1, 2, 2], np.float32)})
    assert (row.reduction, row.centre) == ((1, 1), (0, 0))
    assert row.receptive_field.status == "upper_bound"


def test_softmax_over_channels_is_local_only_where_the_operator_set_leaves_no_doubt() -> None:
    last = [
        node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1]),
        node("Transpose", ["a"], ["t"], perm=[0, 2, 3, 1]),
        node("Softmax", ["t"], ["y"], axis=3),
    ]
    assert layer(last).receptive_field.status == "exact"
    first = [node("MaxPool", ["x"], ["a"], kernel_shape=[1, 1]), node("Softmax", ["a"], ["y"], axis=1)]
    assert layer(first).receptive_field.status == "unknown"


def test_rows_and_columns_are_told_apart() -> None:
    row = layer([node("MaxPool", ["x"], ["y"], kernel_shape=[3, 5], strides=[2, 1], pads=[1, 0, 1, 0])])
    assert (row.receptive_field.size, row.receptive_field.start) == ((3, 5), (-1, 0))
    assert (row.reduction, row.centre) == ((2, 1), (0, 2))


def test_a_slice_shifts_and_strides_as_in_yolox() -> None:
    rows = by_name(list_layers(good("yolox_nano")))
    field = rows["683"].receptive_field
    assert (field.size, field.start, rows["683"].reduction) == ((2, 2), (0, 0), (2, 2))
    assert (rows["662"].receptive_field.start, rows["662"].centre) == ((0, 1), (0, 1))


def test_a_window_over_the_whole_map_is_a_global_pooling() -> None:
    rows = by_name(list_layers(good("deeplabv3_mnv2_257_voc_nhwc")))
    assert rows["AvgPool2D/AvgPool"].reduction is None
    assert rows["concat"].receptive_field.status == "whole_input"
    assert rows["concat"].reduction == (8, 8)


def test_a_vector_of_a_whole_map_is_unknown_until_it_is_mixed() -> None:
    rows = by_name(list_layers(good("mnist-8")))
    assert rows["Pooling160_Output_0_reshape0"].receptive_field.status == "unknown"
    assert rows["Times212_Output_0"].receptive_field.size == (28, 28)
