"""The values of shape tensors, with the batch's size left open: which entry of a reshape's target is it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.layers.parts import Roles, Shape
from service.engine.nodes import Network, Node

# Stands for the batch's size in the value of a shape tensor.
BATCH = "N"
LONGEST_SHAPE = 16


@dataclass(frozen=True)
class Step:
    """One node that computes with shapes: the roles of what it reads, and the values known so far."""

    node: Node
    roles: Roles | None
    network: Network
    values: Mapping[str, Sequence[Any]]

    def value(self, index: int) -> Sequence[Any] | None:
        """One of the node's inputs, from the file or as it was computed."""
        name = self.node.inputs[index] if index < len(self.node.inputs) else ""
        constant = self.network.constants.get(name)
        if constant is None or constant.dtype.kind not in "iu" or constant.size > LONGEST_SHAPE:
            return self.values.get(name)
        return [int(value) for value in constant.reshape(-1)]


def shape_value(step: Step) -> Sequence[Any] | None:
    """What a node makes of shapes: a list of integers and BATCH; None where that is not known."""
    rule = RULES.get(step.node.op) if step.node.domain == "" else None
    return rule(step) if rule else None


def keeps_batch(target: Sequence[Any] | None, before: Shape, after: Shape) -> bool:
    """Whether axis 0 is the batch at every batch size that the reshape accepts.

    `[1, 256]` is: it fails for two images. `[1, -1]` is not: it would lay them side by side.
    """
    if not target or None in before[1:]:
        return bool(target) and target is not None and target[0] in (0, BATCH)
    rest = [before[i] if size == 0 and i < len(before) else size for i, size in enumerate(target)][1:]
    if target[0] in (0, BATCH):
        return True
    if target[0] not in (1, -1, before[0]) or any(not isinstance(s, int) or s < 1 for s in rest):
        return False
    return _product(rest) == _product(before[1:])


def _product(sizes: Sequence[Any]) -> int:
    total = 1
    for size in sizes:
        total *= size or 1
    return total


def _shape(step: Step) -> Sequence[Any] | None:
    roles, shape = step.roles, step.network.shape(step.node.inputs[0])
    if roles is None or shape is None or len(roles) != len(shape):
        return None
    start, end = (step.node.attributes.get(key) for key in ("start", "end"))
    return [BATCH if r == "N" else s for r, s in zip(roles, shape, strict=True)][start:end]


def _same(step: Step) -> Sequence[Any] | None:
    return step.value(0)


def _gathered(step: Step) -> Sequence[Any] | None:
    value, indices = step.value(0), step.value(1)
    if value is None or indices is None:
        return None
    return [value[i] for i in indices if -len(value) <= i < len(value)]


def _sliced(step: Step) -> Sequence[Any] | None:
    value, node = step.value(0), step.node
    starts, ends = (node.attributes.get(n) or step.value(i) for i, n in ((1, "starts"), (2, "ends")))
    steps = step.value(4) or [1]
    return value[starts[0] : ends[0] : steps[0]] if value and starts and ends else None


def _concatenated(step: Step) -> Sequence[Any] | None:
    parts = [step.value(i) for i in range(len(step.node.inputs))]
    return None if any(p is None for p in parts) else [v for p in parts if p is not None for v in p]


def _computed(step: Step) -> Sequence[Any] | None:
    """Arithmetic on single numbers, none of which is the batch's size."""
    folded = step.network.folded.get(step.node.outputs[0])
    inputs = [step.value(i) for i in range(len(step.node.inputs))]
    known = folded is not None and folded.dtype.kind in "iu" and folded.size <= LONGEST_SHAPE
    if folded is None or not known or any(value is None or BATCH in value for value in inputs):
        return None
    return [int(value) for value in folded.reshape(-1)]


RULES: dict[str, Callable[[Step], Sequence[Any] | None]] = {
    "Shape": _shape,
    "Gather": _gathered,
    "Slice": _sliced,
    "Concat": _concatenated,
    **dict.fromkeys(("Cast", "Identity", "Squeeze", "Unsqueeze"), _same),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod"), _computed),
}
