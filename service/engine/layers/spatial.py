"""What each operator does to one spatial axis: how far its cells step, and how far they see."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from service.engine.layers import axis_rules, axis_step
from service.engine.layers.extents import Axis, Extent
from service.engine.layers.operators import CONTRACTIONS, ELEMENTWISE, UNARY, names
from service.engine.nodes import Node

Rule = Callable[[Extent, Axis], Extent]
HALF = Fraction(1, 2)

# Values of one place only.
POINTWISE = (UNARY - {"Softmax", "LogSoftmax", "Hardmax", "CumSum"} | ELEMENTWISE) - {
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "QLinearSoftmax",
    "DynamicQuantizeLinear",
} | names("BatchNormalization LRN ImageScaler Transpose Squeeze Unsqueeze Reshape Flatten Trilu")
GLOBAL_POOLS = names("GlobalAveragePool GlobalMaxPool GlobalLpPool QLinearGlobalAveragePool")
POOLS = names("MaxPool AveragePool LpPool QLinearAveragePool")
# Weights stand at this input; pools have none and say `kernel_shape`.
WINDOWS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, **dict.fromkeys(POOLS, -1)}
# Furthest cells that one output cell of Resize reads, before and after its place.
NEAREST_REACH = {
    "floor": (Fraction(1), Fraction(0)),
    "ceil": (Fraction(0), Fraction(1)),
    "round_prefer_floor": (HALF, HALF),
    "round_prefer_ceil": (HALF, HALF),
}
CUBIC_REACH, LINEAR_REACH = Fraction(2), Fraction(1)


def mixes_space(node: Node) -> bool:
    """Whether a node takes statistics of the whole map: training, or the range to quantise by."""
    trains = node.op == "BatchNormalization" and bool(node.attributes.get("training_mode"))
    return trains or node.op == "DynamicQuantizeLinear"


def _same(extent: Extent, axis: Axis) -> Extent:
    return extent.mixed() if mixes_space(axis.node) else extent


def _mix(extent: Extent, axis: Axis) -> Extent:
    return extent.mixed()


def _collapse(extent: Extent, axis: Axis) -> Extent:
    return extent.collapsed()


def _windowed(extent: Extent, axis: Axis) -> Extent:
    """A window; one that holds the whole map is a global pooling by another name."""
    kernel = _kernel(axis)
    if kernel is None or axis.place < 2:
        return extent.lost()
    dilation, stride = axis.entry("dilations", 1), axis.entry("strides", 1)
    reach = dilation * (kernel - 1)
    pad = _pad_before(axis, reach, stride)
    if pad is None:
        return replace(extent.window(reach, stride, 0), centre=None, status="unknown")
    holds_all = axis.before is not None and 1 < axis.before <= reach + 1 - pad and pad >= 0
    if axis.after == 1 and holds_all and dilation == 1:
        return extent.collapsed()
    return extent.window(reach, stride, pad)


def _kernel(axis: Axis) -> int | None:
    """The window's cells along the axis, from the attribute or the weights."""
    named = axis.entry("kernel_shape", 0)
    weights = WINDOWS.get(axis.node.op, 1)
    if named or weights < 0:
        return named or None
    shape = axis.network.shape(axis.node.inputs[weights])
    return shape[axis.place] if shape and len(shape) == axis.rank else None


def _pad_before(axis: Axis, reach: int, stride: int) -> int | None:
    """Cells of padding at the begin; SAME depends on the size, see the ONNX operator Conv."""
    mode = axis.node.attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return axis.entry("pads", 0)
    if mode == "VALID":
        return 0
    if axis.before is None:
        return None
    total = max(0, (-(-axis.before // stride) - 1) * stride + reach + 1 - axis.before)
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def _transposed_window(extent: Extent, axis: Axis) -> Extent:
    """Output o reads inputs (o + pad - reach) / stride to (o + pad) / stride."""
    kernel = _kernel(axis)
    if kernel is None or axis.before is None or axis.after is None or axis.place < 2:
        return extent.lost()
    stride, reach = axis.entry("strides", 1), axis.entry("dilations", 1) * (kernel - 1)
    pad = _transposed_pad(axis, reach, stride, axis.before)
    made = extent.sampled(
        Fraction(1, stride),
        Fraction(pad, stride),
        (Fraction(reach, stride), Fraction(0)),
        Fraction(-reach, 2 * stride),
    )
    return made if stride == 1 else made.bounded()


def _transposed_pad(axis: Axis, reach: int, stride: int, before: int) -> int:
    """The begin's share of what is cut off: onnxruntime's reading where the file names an output size."""
    mode = axis.node.attributes.get("auto_pad", "NOTSET")
    sized = axis.node.attributes.get("output_shape")
    if not sized and mode in ("NOTSET", "", "VALID"):
        return axis.entry("pads", 0) if mode != "VALID" else 0
    wanted = axis.entry("output_shape", 0, axis.rank - len(sized)) if sized else before * stride
    extra = axis.entry("output_padding", 0)
    total = max(0, (before - 1) * stride + extra + reach + 1 - wanted)
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def _resized(extent: Extent, axis: Axis) -> Extent:
    """Place and reach of Resize and Upsample: https://onnx.ai/onnx/operators/onnx__Resize.html."""
    if extent.jump is None:
        return extent
    ratio = _scale(axis)
    if ratio == 1 and axis.before == axis.after:
        return extent
    place = _place(axis, ratio) if ratio else None
    reach = _reach(axis, ratio) if ratio else None
    if place is None or reach is None:
        return replace(extent.lost(), status="unknown")
    step, offset = place
    reach = _clamped(axis, step, offset, reach)
    return extent.sampled(step, offset, reach, _mean_rounding(axis, step, offset)).bounded()


def _clamped(
    axis: Axis, step: Fraction, offset: Fraction, reach: tuple[Fraction, Fraction]
) -> tuple[Fraction, Fraction]:
    """Places outside the map are moved to its first or last cell."""
    beyond = step * ((axis.after or 1) - 1) + offset - ((axis.before or 1) - 1)
    return max(reach[0], beyond), max(reach[1], -offset)


def _scale(axis: Axis) -> Fraction | None:
    """Output cells to an input cell; a stored float that means the sizes' ratio is taken as that."""
    if axis.before is None or axis.after is None or axis.node.attributes.get("extrapolation_value"):
        return None
    if axis.node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    exact = Fraction(axis.after, axis.before)
    named = _named_scale(axis)
    if named is None or abs(named - exact) < 1e-5 * exact:
        return exact
    return Fraction(named).limit_denominator(1 << 16)


def _named_scale(axis: Axis) -> float | None:
    """The entry of `scales`, which is an attribute (Upsample-7) or a constant input."""
    values = axis.node.attributes.get("scales")
    for name in axis.node.inputs[1:3] if values is None else ():
        constant = axis.network.value(name)
        if constant is not None and constant.dtype.kind == "f" and constant.size:
            values = constant.reshape(-1)
    if values is None:
        return None
    chosen = [a % axis.rank for a in axis.node.attributes.get("axes") or range(axis.rank)]
    if axis.node.op == "Resize" and len(axis.node.inputs) > 2 and len(values) != len(chosen):
        return None
    return float(values[chosen.index(axis.place)]) if axis.place in chosen else 1.0


def _place(axis: Axis, scale: Fraction) -> tuple[Fraction, Fraction] | None:
    """Step and offset of the line that gives the input's place for an output cell."""
    mode = axis.node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if axis.node.op == "Upsample" or (axis.node.op == "Resize" and len(axis.node.inputs) == 2):
        mode = "asymmetric"
    step = 1 / scale
    if mode == "align_corners":
        before, after = axis.before or 1, axis.after or 1
        return (Fraction(before - 1, after - 1), Fraction(0)) if after > 1 else None
    if mode == "pytorch_half_pixel" and axis.after == 1:
        return None
    offsets = {
        "half_pixel": step / 2 - HALF,
        "pytorch_half_pixel": step / 2 - HALF,
        "asymmetric": Fraction(0),
        "tf_half_pixel_for_nn": step / 2,
    }
    return (step, offsets[mode]) if mode in offsets else None


def _reach(axis: Axis, scale: Fraction) -> tuple[Fraction, Fraction] | None:
    mode = axis.node.attributes.get("mode", "nearest")
    if mode == "nearest":
        return NEAREST_REACH.get(_rounding(axis))
    reach = CUBIC_REACH if mode == "cubic" else LINEAR_REACH
    if axis.node.attributes.get("antialias") and scale < 1:
        reach = reach / scale + 1
    return (reach, reach) if mode in ("linear", "cubic") else None


def _rounding(axis: Axis) -> str:
    """How nearest rounds; Upsample and Resize-10 had no choice."""
    old = axis.node.op == "Upsample" or len(axis.node.inputs) == 2
    return "floor" if old else str(axis.node.attributes.get("nearest_mode", "round_prefer_floor"))


def _mean_rounding(axis: Axis, step: Fraction, offset: Fraction) -> Fraction:
    """How far the cells taken lie, on average, from the places asked for."""
    if axis.node.attributes.get("mode", "nearest") != "nearest":
        return Fraction(0)
    means = {
        "floor": _mean_floor(step, offset),
        "ceil": -_mean_floor(step, -offset),
        "round_prefer_ceil": HALF + _mean_floor(step, offset + HALF),
        "round_prefer_floor": -HALF - _mean_floor(step, HALF - offset),
    }
    return means.get(_rounding(axis), Fraction(0))


def _mean_floor(step: Fraction, offset: Fraction) -> Fraction:
    """The mean of floor(v) - v over all v = u * step + offset."""
    phases = step.denominator
    return -(Fraction(phases - 1, 2) + offset * phases % 1) / phases


def _depth_to_space(extent: Extent, axis: Axis) -> Extent:
    return extent.spread(int(axis.node.attributes.get("blocksize", 1)))


def _space_to_depth(extent: Extent, axis: Axis) -> Extent:
    block = int(axis.node.attributes.get("blocksize", 1))
    return extent.window(block - 1, block, 0)


def _padded(extent: Extent, axis: Axis) -> Extent:
    """A border of constants shifts; one of mirrored or repeated cells sees pixels further inside."""
    pads = axis_step.integers(axis.network, axis.node, 1, "pads")
    chosen = axis_step.integers(axis.network, axis.node, 3, "axes") or list(range(axis.rank))
    places = [a % axis.rank for a in chosen]
    if pads is None or len(pads) != 2 * len(places):
        return extent.lost()
    if axis.place not in places:
        return extent
    begin, end = (pads[places.index(axis.place) + i] for i in (0, len(places)))
    folds = {"constant": 0, "edge": 1, "reflect": 2}.get(axis.node.attributes.get("mode", "constant"))
    moved = extent.window(0, 1, begin)
    if folds is None:
        return moved.unclear()
    before, after = (Fraction(folds * max(0, side)) for side in (end, begin))
    seen = extent.sampled(Fraction(1), Fraction(-begin), (before, after), Fraction(0))
    return seen.bounded() if before or after else moved


def _sliced(extent: Extent, axis: Axis) -> Extent:
    bounds = _slice_bounds(axis)
    if bounds is None:
        return extent.lost()
    start, step = bounds
    if (start, step) == (0, 1) and axis.before == axis.after:
        return extent
    if step == -1 and axis.before == axis.after and start == (axis.before or 0) - 1:
        return replace(extent, is_flipped=not extent.is_flipped)
    if extent.rolled and step == 1 and axis.after:
        shift, cells = extent.rolled
        first = (start + shift) % cells
        own = replace(extent, rolled=None) if first + axis.after <= cells else extent
        return own.window(0, 1, -first)
    return extent.window(0, step, -start) if step > 0 else extent.lost()


def _slice_bounds(axis: Axis) -> tuple[int, int] | None:
    """First cell and step along the axis; (0, 1) where it is not cut."""
    network, node = axis.network, axis.node
    starts = axis_step.integers(network, node, 1, "starts")
    if starts is None:
        return None
    has_axes = "axes" in node.attributes or (len(node.inputs) > 3 and node.inputs[3])
    chosen = axis_step.integers(network, node, 3, "axes") if has_axes else list(range(len(starts)))
    steps = (
        axis_step.integers(network, node, 4, "steps")
        if len(node.inputs) > 4 and node.inputs[4]
        else [1] * len(starts)
    )
    if chosen is None or steps is None:
        return None
    places = [a % axis.rank for a in chosen]
    if axis.place not in places:
        return (0, 1)
    start, step = starts[places.index(axis.place)], steps[places.index(axis.place)]
    if axis.before is None:
        return (start, step) if start >= 0 else None
    return min(start if start >= 0 else max(0, start + axis.before), axis.before), step


def _cropped(extent: Extent, axis: Axis) -> Extent:
    """The experimental operator Crop: `border` is left, top, right, bottom."""
    border = axis.node.attributes.get("border") or (0, 0, 0, 0)
    return extent.window(0, 1, -int(border[1 if axis.place == 2 else 0]))


def _reduced(extent: Extent, axis: Axis) -> Extent:
    chosen = axis_rules.reduced_axes(axis.network, axis.node, axis.rank)
    if chosen is None:
        return extent.lost()
    return extent.collapsed() if axis.place in chosen else extent


def _concatenated(extent: Extent, axis: Axis) -> Extent:
    along = int(axis.node.attributes.get("axis", 1)) % axis.rank
    return extent.lost() if along == axis.place else extent


def _normalised(extent: Extent, axis: Axis) -> Extent:
    """Softmax meant all axes from `axis` on before operator set 13, and one axis since."""
    named = axis.node.attributes.get("axis")
    first = int(1 if named is None else named) % axis.rank
    spatial = axis.before is None or axis.before > 1
    if first == axis.place:
        return extent.mixed()
    return extent.unclear() if spatial and (first < axis.place or named is None) else extent


def _layer_normalised(extent: Extent, axis: Axis) -> Extent:
    first = int(axis.node.attributes.get("axis", -1)) % axis.rank
    return extent.mixed() if axis.place >= first else extent


def _one_axis(extent: Extent, axis: Axis) -> Extent:
    along = int(axis.node.attributes.get("axis", -1)) % axis.rank
    return extent.mixed() if axis.place == along else extent


def _expanded(extent: Extent, axis: Axis) -> Extent:
    return extent if axis.before == axis.after and axis.before is not None else extent.lost()


def _picked(extent: Extent, axis: Axis) -> Extent:
    """Split leaves the other axes alone."""
    along = int(axis.node.attributes.get("axis", 0)) % axis.rank
    return extent.lost() if along == axis.place else extent


def _gathered(extent: Extent, axis: Axis) -> Extent:
    """Cells at regular distances are followed; the other axes are left alone."""
    along = int(axis.node.attributes.get("axis", 0)) % axis.rank
    if along != axis.place:
        return extent
    indices = axis.network.value(axis.node.inputs[1])
    if indices is None or indices.ndim != 1 or len(indices) < 2:
        return extent.lost()
    steps = {int(b) - int(a) for a, b in itertools.pairwise(indices)}
    step = steps.pop() if len(steps) == 1 else 0
    return extent.window(0, step, -int(indices[0])) if step > 0 and indices[0] >= 0 else extent.lost()


def _multiplied(extent: Extent, axis: Axis) -> Extent:
    """A matrix of weights sums over one axis, which is space only in rare layouts."""
    summed = axis_rules.contracted(axis.node, axis.rank, axis.network)
    return extent.collapsed() if summed == axis.place else extent


RULES: dict[str, Rule] = {
    **dict.fromkeys(POINTWISE, _same),
    **dict.fromkeys(WINDOWS, _windowed),
    **dict.fromkeys(GLOBAL_POOLS, _collapse),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization"), _mix),
    "DynamicQuantizeLinear": _mix,
    **dict.fromkeys(
        ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"), _layer_normalised
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "QLinearSoftmax"), _normalised),
    **dict.fromkeys(("LpNormalization", "CumSum"), _one_axis),
    **dict.fromkeys((op for op in axis_rules.RULES if op.startswith(("Reduce", "Arg"))), _reduced),
    **dict.fromkeys(("Concat", "QLinearConcat"), _concatenated),
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(("Expand", "Tile"), _expanded),
    "Split": _picked,
    "Gather": _gathered,
    **dict.fromkeys(CONTRACTIONS - {"Gemm"}, _multiplied),
    "ConvTranspose": _transposed_window,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Pad": _padded,
    "Slice": _sliced,
    "Crop": _cropped,
}
