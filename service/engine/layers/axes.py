"""Which part each axis of each tensor plays: batch, channel, row, column; where that is not certain, none.

Rules are keyed by operator and carry labels from a node's inputs to its outputs. An input's own labels
are found by following its axes to the first operator that defines an order (Conv, pooling, ...).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.layers.operators import ELEMENTWISE, KNOWN_DOMAINS, ORDERED, RESIZING, UNARY, names
from service.engine.layers.reshapes import BATCH, Roles, Shape, keeps_batch, regrouped
from service.engine.nodes import Network, Node
from service.values import Layout, TensorSpec

LAYOUTS: dict[Roles, Layout] = {
    ("N", "C", "H", "W"): "NCHW",
    ("N", "H", "W", "C"): "NHWC",
    ("N", "C"): "NC",
}
CHANNELS_OF_PICTURES = (1, 3, 4)
LONGEST_SHAPE = 16


@dataclass(frozen=True)
class Step:
    """One node at work: the labels of its inputs that have some, and shapes to judge by."""

    node: Node
    roles: Mapping[str, Roles]
    network: Network
    values: Mapping[str, Sequence[Any]]

    def of(self, index: int) -> Roles | None:
        """The labels of one input, None where nothing is known."""
        inputs = self.node.inputs
        return self.roles.get(inputs[index]) if index < len(inputs) else None

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor."""
        return self.network.shape(name)

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """A list that older operator sets keep in an attribute and newer ones in a constant input."""
        return integers(self.network, self.node, index, attribute)


Rule = Callable[[Step], Roles | None]


def integers(network: Network, node: Node, index: int, attribute: str) -> list[int] | None:
    """A list of integers from an attribute, else from a constant input; None where it is neither."""
    if attribute in node.attributes:
        return [int(i) for i in node.attributes[attribute]]
    value = network.constants.get(node.inputs[index]) if index < len(node.inputs) else None
    return None if value is None else [int(i) for i in value.reshape(-1)]


def find_roles(network: Network) -> dict[str, Roles]:
    """The roles of the axes of every tensor that depends on an input and whose rank is known."""
    roles = {spec.name: _input_roles(network, spec) for spec in network.inputs}
    for node, made in _follow(network, roles):
        for name in node.makes:
            fitting = _fitting(made, network.shape(name))
            if fitting is not None:
                roles[name] = fitting
    return roles


def input_layout(network: Network, name: str) -> Layout | None:
    """The layout of one input: how its axes reach the first Conv or pooling, else by its shape."""
    specs = [spec for spec in network.inputs if spec.name == name]
    return layout_of(_input_roles(network, specs[0])) if specs else None


def layout_of(roles: Roles | None) -> Layout | None:
    """The layout's name, None for anything but NCHW, NHWC and NC."""
    return LAYOUTS.get(roles) if roles is not None else None


def _input_roles(network: Network, spec: TensorSpec) -> Roles:
    shape = network.shape(spec.name) or spec.shape or ()
    found = _anchored(network, spec.name, len(shape))
    if found is not None:
        return found
    return _by_shape(shape) if len(shape) == 4 else (None,) * len(shape)


def _by_shape(shape: Shape) -> Roles:
    first, last = (shape[i] in CHANNELS_OF_PICTURES for i in (1, 3))
    if first == last:
        return (None,) * 4
    return ("N", "C", "H", "W") if first else ("N", "H", "W", "C")


def _anchored(network: Network, name: str, rank: int) -> Roles | None:
    """Follow numbered axes to the first operator that says what they are."""
    labels: dict[str, Roles] = {name: tuple(str(i) for i in range(rank))}
    for node, made in _follow(network, labels):
        data = labels.get(node.inputs[0]) if node.inputs else None
        order = _order(node, len(data)) if data else None
        if data is not None and order is not None and len(data) == len(order):
            meaning = {label: role for label, role in zip(data, order, strict=True) if label}
            return tuple(meaning.get(str(i)) for i in range(rank))
        for output in node.makes:
            if made is not None:
                labels[output] = made
    return None


def _order(node: Node, rank: int) -> Roles | None:
    if node.domain not in KNOWN_DOMAINS:
        return None
    if node.op in ORDERED and not node.attributes.get("channels_last"):
        return _ordered_roles(rank)
    return ("N", "C") if node.op == "Gemm" and not node.attributes.get("transA") else None


def _ordered_roles(rank: int) -> Roles:
    return ("N", "C", "H", "W") if rank == 4 else ("N", "C", *(None,) * (rank - 2))[:rank]


def _follow(network: Network, roles: Mapping[str, Roles]) -> Iterator[tuple[Node, Roles | None]]:
    """Each node that reads a labelled tensor, and the labels it makes; the caller stores them."""
    values: dict[str, Sequence[Any]] = {}
    for node in network.nodes:
        step = Step(node, roles, network, values)
        labelled = any(name in roles for name in node.reads)
        if node.op in SHAPE_VALUES and _known(node) and (value := SHAPE_VALUES[node.op](step)) is not None:
            values[node.outputs[0]] = value
        if labelled:
            yield node, RULES[node.op](step) if _known(node) else None


def _known(node: Node) -> bool:
    return node.op in RULES and node.domain in KNOWN_DOMAINS


def _fitting(roles: Roles | None, shape: Shape | None) -> Roles | None:
    """The roles where they fit the shape's rank, else none for each axis."""
    if shape is None:
        return roles
    return roles if roles is not None and len(roles) == len(shape) else (None,) * len(shape)


def _keep(step: Step) -> Roles | None:
    return step.of(0)


def _ordered(step: Step) -> Roles | None:
    """What ONNX defines; rows and columns that were swapped before stay swapped."""
    data = step.of(0)
    if not data or step.node.attributes.get("channels_last"):
        return data
    defined = _ordered_roles(len(data))
    batch = defined[:1] if data[0] == "N" else (None,)
    swapped = data[2:] == ("W", "H")
    return (*batch, *defined[1:2], *(data[2:] if swapped else defined[2:]))


def _resized(step: Step) -> Roles | None:
    """Rows stay rows at another size, but a batch that is cut or repeated is none."""
    data, before = step.of(0), step.shape(step.node.inputs[0])
    after = step.shape(step.node.outputs[0])
    if data is None or before is None or after is None or len(after) != len(before):
        return data if data is not None and "N" not in data[1:] else None
    changed = [a != b for a, b in zip(before, after, strict=True)]
    return tuple(None if r == "N" and c else r for r, c in zip(data, changed, strict=True))


def _joined(step: Step) -> Roles | None:
    """Broadcast from the right; an axis has a role where every input that fills it agrees."""
    parts = [(step.roles[n], step.shape(n)) for n in step.node.inputs if n in step.roles]
    rank = len(step.shape(step.node.outputs[0]) or max((r for r, _ in parts), key=len, default=()))
    fixed = [s for n in step.node.inputs if n not in step.roles and (s := step.shape(n))]
    joined = tuple(_agreed([_from_right(p, rank - i) for p in parts]) for i in range(rank))
    grown = rank > 0 and any(len(s) == rank and s[0] not in (1, None) for s in fixed)
    if grown and joined[0] == "N" and all(s and len(s) == rank and s[0] == 1 for _, s in parts):
        return (None, *joined[1:])
    return joined if parts else None


def _from_right(part: tuple[Roles, Shape | None], place: int) -> tuple[str | None, int | None] | None:
    roles, shape = part
    if place > len(roles):
        return None
    return roles[-place], shape[-place] if shape and len(shape) == len(roles) else None


def _agreed(seen: Sequence[tuple[str | None, int | None] | None]) -> str | None:
    """A missing axis, or one of size 1 that is not the batch, is stretched and has no say."""
    present = [item for item in seen if item is not None]
    roles = {role for role, _ in present}
    if len(roles) == 1 or "N" in roles:
        return roles.pop() if len(roles) == 1 else None
    filling = {role for role, size in present if size != 1}
    return filling.pop() if len(filling) == 1 else None


def _concatenated(step: Step) -> Roles | None:
    known = [step.roles[name] for name in step.node.inputs if name in step.roles]
    if not known or len({len(roles) for roles in known}) != 1:
        return None
    agreed = [column[0] if len(set(column)) == 1 else None for column in zip(*known, strict=True)]
    axis = int(step.node.attributes.get("axis", 1)) % len(agreed)
    if agreed[axis] == "N":
        agreed[axis] = None
    return tuple(agreed)


def _transposed(step: Step) -> Roles | None:
    data = step.of(0)
    if data is None:
        return None
    order = step.node.attributes.get("perm") or range(len(data) - 1, -1, -1)
    return tuple(data[i] for i in order) if len(list(order)) == len(data) else None


def _squeezed(step: Step) -> Roles | None:
    data = step.of(0)
    if data is None:
        return None
    axes = step.integers(1, "axes")
    shape = step.shape(step.node.inputs[0]) or ()
    gone = {a % len(data) for a in axes} if axes else {i for i, s in enumerate(shape) if s == 1}
    return tuple(role for i, role in enumerate(data) if i not in gone)


def _unsqueezed(step: Step) -> Roles | None:
    data, axes = step.of(0), step.integers(1, "axes")
    if data is None or axes is None:
        return None
    rank = len(data) + len(axes)
    new, rest = {a % rank for a in axes}, iter(data)
    return tuple(None if i in new else next(rest) for i in range(rank))


def reduced_axes(network: Network, node: Node, rank: int) -> set[int] | None:
    """The axes that a Reduce operator or ArgMax runs over; None where they are not constant."""
    if node.op in ("ArgMax", "ArgMin"):
        return {int(node.attributes.get("axis", 0)) % rank}
    if "axes" not in node.attributes and (len(node.inputs) < 2 or not node.inputs[1]):
        return set() if node.attributes.get("noop_with_empty_axes") else set(range(rank))
    axes = integers(network, node, 1, "axes")
    return None if axes is None else {a % rank for a in axes}


def _reduced(step: Step) -> Roles | None:
    data = step.of(0)
    axes = reduced_axes(step.network, step.node, len(data)) if data else None
    if data is None or axes is None:
        return None
    if step.node.attributes.get("keepdims", 1):
        return tuple(None if i in axes and r == "N" else r for i, r in enumerate(data))
    return tuple(role for i, role in enumerate(data) if i not in axes)


def _gathered(step: Step) -> Roles | None:
    data, indices = step.of(0), step.shape(step.node.inputs[1])
    if data is None or indices is None or not data:
        return None
    axis = int(step.node.attributes.get("axis", 0)) % len(data)
    kept = (None if data[axis] == "N" else data[axis],) if len(indices) == 1 else (None,) * len(indices)
    return (*data[:axis], *kept, *data[axis + 1 :])


def _flattened(step: Step) -> Roles | None:
    data, shape = step.of(0), step.shape(step.node.inputs[0])
    if data is None or int(step.node.attributes.get("axis", 1)) != 1 or not data:
        return (None, None)
    pooled = shape is not None and data[1:2] == ("C",) and all(size == 1 for size in shape[2:])
    return (data[0] if data[0] == "N" else None, "C" if pooled else None)


def _gemm(step: Step) -> Roles | None:
    data = step.of(0)
    batched = data is not None and data[:1] == ("N",) and not step.node.attributes.get("transA")
    return ("N" if batched else None, "C")


def _multiplied(step: Step) -> Roles | None:
    """A constant on the right mixes the last axis; on the left, or between two maps, both are mixed."""
    quantised = step.node.op == "QLinearMatMul"
    left, right = step.of(0), step.of(3 if quantised else 1)
    if left is not None and right is None:
        last = "C" if len(left) == 2 or left[-1:] == ("C",) else None
        return (*left[:-1], last)
    known = [roles for roles in (left, right) if roles is not None]
    kept = all(len(roles) > 2 and roles[0] == "N" for roles in known)
    rank = max((len(roles) for roles in known), default=0)
    return ("N" if kept else None, *(None,) * (rank - 1)) if rank else None


def _reshaped(step: Step) -> Roles | None:
    """Axes that lie in memory as before keep their roles, and the batch where it surely stays first.

    The target's own first entry decides on the batch: see `keeps_batch`.
    """
    data, before = step.of(0), step.shape(step.node.inputs[0])
    after = step.shape(step.node.outputs[0])
    if data is None or not before or not after or len(before) != len(data):
        return None
    batched = data[0] == "N"
    kept = batched and keeps_batch(_target(step), before, after)
    if batched and not kept:
        return (None,) * len(after)
    skip = 1 if kept else 0
    rest = regrouped(data[skip:], before[skip:], after[skip:])
    return (*data[:skip], *rest)


def _target(step: Step) -> Sequence[Any] | None:
    if len(step.node.inputs) > 1 and step.node.inputs[1] in step.values:
        return step.values[step.node.inputs[1]]
    return step.integers(1, "shape")


def _shape_value(step: Step) -> Sequence[Any] | None:
    roles, shape = step.of(0), step.shape(step.node.inputs[0])
    if roles is None or shape is None or len(roles) != len(shape):
        return None
    start, end = (step.node.attributes.get(key) for key in ("start", "end"))
    return [BATCH if r == "N" else s for r, s in zip(roles, shape, strict=True)][start:end]


def _known_value(step: Step, name: str) -> Sequence[Any] | None:
    constant = step.network.constants.get(name)
    if constant is None or constant.dtype.kind not in "iu" or constant.size > LONGEST_SHAPE:
        return step.values.get(name)
    return [int(value) for value in constant.reshape(-1)]


def _same_value(step: Step) -> Sequence[Any] | None:
    return _known_value(step, step.node.inputs[0])


def _gathered_value(step: Step) -> Sequence[Any] | None:
    value, indices = (_known_value(step, name) for name in step.node.inputs[:2])
    if value is None or indices is None:
        return None
    return [value[i] for i in indices if -len(value) <= i < len(value)]


def _sliced_value(step: Step) -> Sequence[Any] | None:
    value, starts, ends = (
        step.values.get(step.node.inputs[0]),
        step.integers(1, "starts"),
        step.integers(2, "ends"),
    )
    steps = step.integers(4, "steps") or [1]
    return value[starts[0] : ends[0] : steps[0]] if value and starts and ends else None


def _concatenated_value(step: Step) -> Sequence[Any] | None:
    parts = [_known_value(step, name) for name in step.node.inputs]
    return None if any(p is None for p in parts) else [v for p in parts if p is not None for v in p]


def _nothing(step: Step) -> Roles | None:
    return None


SHAPE_VALUES: dict[str, Callable[[Step], Sequence[Any] | None]] = {
    "Shape": _shape_value,
    "Gather": _gathered_value,
    "Slice": _sliced_value,
    "Concat": _concatenated_value,
    **dict.fromkeys(("Cast", "Identity", "Squeeze", "Unsqueeze"), _same_value),
}

RULES: dict[str, Rule] = {
    **dict.fromkeys(ORDERED, _ordered),
    **dict.fromkeys(UNARY, _keep),
    **dict.fromkeys(ELEMENTWISE, _joined),
    **dict.fromkeys(RESIZING, _resized),
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
    "Flatten": _flattened,
    "Gemm": _gemm,
    "Reshape": _reshaped,
    "Shape": _nothing,
}
