"""What each operator does to the axes of what it reads."""

from collections.abc import Sequence

from service.engine.layers.axis_step import Rule, Step, integers
from service.engine.layers.operators import ELEMENTWISE, ORDERED, RESIZING, UNARY, names
from service.engine.layers.parts import (
    REPEATED,
    SPACE,
    Axes,
    Axis,
    Part,
    Roles,
    Shape,
    forgotten,
    place_of,
    roles_of,
    settled,
    whole,
    whole_axes,
)
from service.engine.layers.reshapes import flattened, reshaped
from service.engine.nodes import Network, Node

# They change values and no axes, whatever these are.
NORMALIZING = names("BatchNormalization InstanceNormalization GroupNormalization LRN ImageScaler")
# They run over some axes of each place, which they leave as they are.
NORMALIZING_AXES = names(
    "Softmax LogSoftmax Hardmax QLinearSoftmax LayerNormalization SimplifiedLayerNormalization "
    "RMSNormalization LpNormalization CumSum"
)


def ordered_roles(rank: int) -> Roles:
    """What ONNX defines for convolutions and the like."""
    return ("N", "C", "H", "W") if rank == 4 else ("N", "C", *(None,) * (rank - 2))[:rank]


def reduced_axes(network: Network, node: Node, rank: int) -> set[int] | None:
    """The axes that a Reduce operator or ArgMax runs over; None where they are not constant."""
    if node.op in ("ArgMax", "ArgMin"):
        return {int(node.attributes.get("axis", 0)) % rank}
    if "axes" not in node.attributes and (len(node.inputs) < 2 or not node.inputs[1]):
        return set() if node.attributes.get("noop_with_empty_axes") else set(range(rank))
    axes = integers(network, node, 1, "axes")
    return None if axes is None else {a % rank for a in axes}


def _keep(step: Step) -> Axes | None:
    return step.of(0)


def _normalized(step: Step) -> Axes | None:
    data = step.of(0)
    known = data is not None and any(part.role for axis in data for part in axis)
    return data if known else _ordered(step)


def _ordered(step: Step) -> Axes | None:
    """What ONNX defines; rows and columns that were swapped before stay swapped."""
    data = step.of(0)
    if not data or step.node.attributes.get("channels_last"):
        return data
    roles, defined = roles_of(data), ordered_roles(len(data))
    batch = defined[:1] if roles[0] == "N" else (None,)
    space = roles[2:] if roles[2:] == ("W", "H") or len(data) != 4 else defined[2:]
    return whole_axes((*batch, *defined[1:2], *space), step.made)


def _resized(step: Step) -> Axes | None:
    """Rows stay rows at another size, but a batch that is cut or repeated is none."""
    data, after = step.of(0), step.made
    if data is None or after is None or len(after) != len(data):
        roles = roles_of(data) if data is not None else ()
        return data if data is not None and "N" not in roles[1:] else None
    for role in SPACE:
        place = place_of(data, role)
        if place is not None and _size(data[place]) != after[place]:
            data = settled(data, role)
    roles = roles_of(data)
    return tuple(_resized_axis(axis, role, size) for axis, role, size in zip(data, roles, after, strict=True))


def _resized_axis(axis: Axis, role: str | None, size: int | None) -> Axis:
    before = _size(axis)
    if before == size:
        return axis
    if before == 1 and role != "N":
        return (Part(REPEATED, size or 0),)
    return whole(None if role == "N" else role, size)


def _size(axis: Axis) -> int:
    size = 1
    for part in axis:
        size *= part.size
    return size


def _padded(step: Step) -> Axes | None:
    """As at another size; a border around a single cell does not repeat it."""
    made, data = _resized(step), step.of(0)
    if made is None or data is None or len(made) != len(data):
        return made
    roles = roles_of(data)
    return tuple(
        whole(role, part[0].size) if part and part[0].role == REPEATED else part
        for role, part in zip(roles, made, strict=True)
    )


def _joined(step: Step) -> Axes | None:
    """Broadcast from the right; an axis is what every input that fills it agrees on."""
    known = [(step.axes[n], step.shape(n)) for n in step.node.inputs if n in step.axes]
    rank = len(step.made or max((axes for axes, _ in known), key=len, default=()))
    fixed = [s for n in step.node.inputs if n not in step.axes and (s := step.shape(n))]
    sizes = step.made or (None,) * rank
    joined = tuple(_agreed([_from_right(axes, rank - i) for axes, _ in known], sizes[i]) for i in range(rank))
    grown = rank > 0 and any(len(s) == rank and s[0] not in (1, None) for s in fixed)
    if grown and roles_of(joined)[0] == "N" and all(s and len(s) == rank and s[0] == 1 for _, s in known):
        return (whole(None, sizes[0]), *joined[1:])
    return joined if known else None


def _from_right(axes: Axes, place: int) -> Axis | None:
    return axes[-place] if place <= len(axes) else None


def _agreed(seen: Sequence[Axis | None], size: int | None) -> Axis:
    """A missing axis, a repeated one, or one of size 1 that is not the batch is stretched and has no say."""
    present = [axis for axis in seen if axis is not None]
    if len(set(present)) == 1:
        return present[0]
    if any(part.role == "N" for axis in present for part in axis):
        return _agreed_batch(present, size)
    filling = {axis for axis in present if _size(axis) != 1 and not _is_repeated(axis)}
    if not filling:
        return max(present, key=_size, default=whole(None, size))
    return filling.pop() if len(filling) == 1 else _same_role(filling, size)


def _agreed_batch(present: Sequence[Axis], size: int | None) -> Axis:
    same = all([part.role for part in axis] == [part.role for part in present[0]] for axis in present)
    return max(present, key=_size) if same else whole(None, size)


def _same_role(axes: set[Axis], size: int | None) -> Axis:
    """Channels that were split or grouped in different ways are channels all the same."""
    roles = {part.role for axis in axes for part in axis}
    return whole("C", size) if roles == {"C"} else whole(None, size)


def _is_repeated(axis: Axis) -> bool:
    return any(part.role == REPEATED for part in axis)


def _concatenated(step: Step) -> Axes | None:
    known = [step.axes[name] for name in step.node.inputs if name in step.axes]
    if not known or len({len(axes) for axes in known}) != 1:
        return None
    rank, sizes = len(known[0]), step.made or (None,) * len(known[0])
    along = int(step.node.attributes.get("axis", 1)) % rank
    roles = {roles_of(axes)[along] for axes in known}
    role = roles.pop() if len(roles) == 1 else None
    agreed = [_agreed_in_all([axes[i] for axes in known], sizes[i]) for i in range(rank)]
    agreed[along] = whole(None if role in ("N", "c") else role, sizes[along])
    return tuple(agreed)


def _agreed_in_all(column: Sequence[Axis], size: int | None) -> Axis:
    filling = {axis for axis in column if not _is_repeated(axis)} or set(column)
    return filling.pop() if len(filling) == 1 else whole(None, size)


def _transposed(step: Step) -> Axes | None:
    data = step.of(0)
    if data is None:
        return None
    order = step.node.attributes.get("perm") or range(len(data) - 1, -1, -1)
    return tuple(data[i] for i in order) if len(list(order)) == len(data) else None


def _squeezed(step: Step) -> Axes | None:
    data = step.of(0)
    if data is None:
        return None
    axes = step.integers(1, "axes")
    shape = step.shape(step.node.inputs[0]) or ()
    gone = {a % len(data) for a in axes} if axes else {i for i, s in enumerate(shape) if s == 1}
    return tuple(axis for i, axis in enumerate(data) if i not in gone)


def _unsqueezed(step: Step) -> Axes | None:
    data, axes = step.of(0), step.integers(1, "axes")
    if data is None or axes is None:
        return None
    rank = len(data) + len(axes)
    new, rest = {a % rank for a in axes}, iter(data)
    return tuple(() if i in new else next(rest) for i in range(rank))


def contracted(node: Node, rank: int, network: Network) -> int:
    """The axis of a map that a product with a matrix of weights sums over."""
    return rank - 1 if node.inputs[0] in network.dependent() else rank - 2


def normalized_axes(node: Node, rank: int) -> set[int]:
    """The axes over which a softmax or a layer normalization runs."""
    named = node.attributes.get("axis")
    if "Softmax" in node.op or node.op == "Hardmax":
        return {int(-1 if named is None else named) % rank}
    first = int(-1 if named is None else named) % rank
    return set(range(first, rank)) if "Normalization" in node.op else {first}


def _normalized_over(step: Step) -> Axes | None:
    data = step.of(0)
    return _mixed(data, normalized_axes(step.node, len(data))) if data else data


def _reduced(step: Step) -> Axes | None:
    data = step.of(0)
    axes = reduced_axes(step.network, step.node, len(data)) if data else None
    if data is None or axes is None:
        return None
    roles, data = roles_of(data), _mixed(data, axes)
    if step.node.attributes.get("keepdims", 1):
        return tuple(_single(roles[i]) if i in axes else axis for i, axis in enumerate(data))
    return tuple(axis for i, axis in enumerate(data) if i not in axes)


def _single(role: str | None) -> Axis:
    return whole(None if role == "N" else role, 1)


def _mixed(data: Axes, axes: set[int]) -> Axes:
    """Axes before some of them are summed over: what lies within steps of rows counts as one cell then."""
    for role in SPACE:
        minor = any(p.role == role and not p.is_major for i in axes for p in data[i])
        place = place_of(data, role)
        if minor and place is not None and place not in axes:
            data = settled(data, role)
        elif minor:
            data = forgotten(data, role)
    return data


def _gathered(step: Step) -> Axes | None:
    data, indices = step.of(0), step.shape(step.node.inputs[1])
    if data is None or indices is None or not data:
        return None
    along = int(step.node.attributes.get("axis", 0)) % len(data)
    role = roles_of(data)[along]
    for part in data[along]:
        if part.role in SPACE and not (part.is_whole and len(data[along]) == 1):
            data = forgotten(data, part.role)
    after = step.made or (None,) * (len(data) - 1 + len(indices))
    kept = None if role in ("N", "c") or len(indices) != 1 else role
    new = tuple(whole(kept, after[along + i]) for i in range(len(indices)))
    return (*data[:along], *new, *data[along + 1 :])


def _gemm(step: Step) -> Axes | None:
    data = step.of(0)
    batched = data is not None and roles_of(data)[:1] == ("N",) and not step.node.attributes.get("transA")
    return whole_axes(("N" if batched else None, "C"), step.made)


def _multiplied(step: Step) -> Axes | None:
    """A sum over the left operand's last axis and the right one's last but one."""
    quantised = step.node.op == "QLinearMatMul"
    left, right = step.of(0), step.of(3 if quantised else 1)
    made = step.made
    size = made[-1] if made else None
    if left is not None and right is None:
        return (*_mixed(left, {len(left) - 1})[:-1], whole(_features_of(left), size))
    if left is None and right is not None:
        return _multiplied_left(right, made)
    if left is None or right is None or min(len(left), len(right)) < 2 or made is None:
        return None
    return _product(left, right, made)


def _features_of(left: Axes) -> str | None:
    """What a matrix of weights makes of the last axis: channels, unless that held rows or columns."""
    spatial = any(part.role in SPACE and part.is_major for part in left[-1])
    return "C" if len(left) == 2 or not (spatial or roles_of(left)[-1] == "N") else None


def _multiplied_left(right: Axes, made: Shape | None) -> Axes | None:
    if made is None or len(made) != len(right) or len(right) < 2:
        return None
    mixed = _mixed(right, {len(right) - 2})
    return (*mixed[:-2], whole(None, made[-2]), mixed[-1])


def _product(left: Axes, right: Axes, made: Shape) -> Axes:
    """Of two maps: the batches agree, rows are the left one's and columns the right one's."""
    rank = len(made)
    batches = [(*[()] * (rank - len(axes)), *axes)[: rank - 2] for axes in (left, right)]
    joined = tuple(_agreed(pair, size) for pair, size in zip(zip(*batches, strict=True), made, strict=False))
    rows, columns = left[-2], right[-1]
    held = {part.role for axis in (*joined, rows) for part in axis} & set(SPACE)
    if held & {part.role for part in columns}:
        columns = whole(None, made[-1])
    return (*joined, rows, columns)


def _nothing(step: Step) -> Axes | None:
    return None


RULES: dict[str, Rule] = {
    **dict.fromkeys(ORDERED - NORMALIZING, _ordered),
    **dict.fromkeys(NORMALIZING, _normalized),
    **dict.fromkeys(UNARY, _keep),
    **dict.fromkeys(NORMALIZING_AXES, _normalized_over),
    **dict.fromkeys(ELEMENTWISE, _joined),
    **dict.fromkeys(RESIZING, _resized),
    "Pad": _padded,
    **dict.fromkeys(
        names(
            "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
            "ReduceLogSumExp ReduceSumSquare ArgMax ArgMin"
        ),
        _reduced,
    ),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"), _multiplied),
    **dict.fromkeys(("Concat", "QLinearConcat"), _concatenated),
    "Transpose": _transposed,
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Gather": _gathered,
    "Flatten": flattened,
    "Gemm": _gemm,
    "Reshape": reshaped,
    "Shape": _nothing,
}
