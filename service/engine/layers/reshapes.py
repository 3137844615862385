"""What Reshape and Flatten do to axes: parts that lie in memory as before keep their roles."""

from collections.abc import Sequence
from typing import Any

from service.engine.layers.axis_step import Step
from service.engine.layers.parts import Axes, Part, Shape, regroup, shuffled, whole, whole_axes
from service.engine.layers.shape_values import BATCH, keeps_batch
from service.engine.nodes import Network


def reshaped(step: Step) -> Axes | None:
    """Parts that lie in memory as before keep their roles, and the batch where it surely stays first."""
    data, before, after = step.of(0), step.shape(step.node.inputs[0]), step.made
    if data is None or not before or not after or len(before) != len(data):
        return None
    if tuple(before) == tuple(after) and data[0] == whole("N", before[0]):
        kept = keeps_batch(_target(step), before, after) or _takes_one(step.network)
        return data if kept else ((), *data[1:])
    nothing = whole_axes((None,) * len(after), after)
    if not any(part.role == "N" for axis in data for part in axis):
        return shuffled(regroup(data, after) or nothing)
    batch, *rest = data[0]
    if batch.role != "N" or batch.size != 1:
        return _reshaped_batch(step, data, before, after) or nothing
    return _with_batch(step, (tuple(rest), *data[1:]), before, after)


def _reshaped_batch(step: Step, data: Axes, before: Shape, after: Shape) -> Axes | None:
    """A batch of several images, which the file fixes, stays first at its size or is lost."""
    if data[0] != whole("N", before[0]) or not keeps_batch(_target(step), before, after):
        return None
    rest = regroup(data[1:], after[1:]) if before[0] == after[0] else None
    return None if rest is None else shuffled((data[0], *rest))


def _with_batch(step: Step, rest: Axes, before: Shape, after: Shape) -> Axes:
    """The batch of one image, which is merged with what follows it, or stands alone again."""
    target, alone = _target(step), not rest[0]
    made = regroup(rest, after) or whole_axes((None,) * len(after), after)
    if after[0] == 1:
        kept = keeps_batch(target, before, after) if alone else _is_batch_again(target, after)
        return shuffled((whole("N", 1), *made[1:])) if kept or _takes_one(step.network) else shuffled(made)
    if target is not None and target[0] in (0, 1):
        return whole_axes((None,) * len(after), after)
    return ((Part("N", 1), *made[0]), *made[1:])


def _takes_one(network: Network) -> bool:
    """Whether the file fixes its batch to one image: then a leading axis of one is the batch."""
    return all(spec.shape and spec.shape[0] == 1 for spec in network.inputs)


def _is_batch_again(target: Sequence[Any] | None, after: Shape) -> bool:
    """Whether the first entry is the batch's size and the others leave nothing to it."""
    if not target or len(target) != len(after):
        return False
    rest = [isinstance(size, int) and size > 0 for size in target[1:]]
    return target[0] == BATCH or (target[0] in (1, -1) and all(rest))


def _target(step: Step) -> Sequence[Any] | None:
    """The target as the file says it, and not as it is at these shapes: the batch's size may change."""
    inputs = step.node.inputs
    if len(inputs) > 1 and inputs[1] in step.values:
        return step.values[inputs[1]]
    if "shape" in step.node.attributes:
        return [int(size) for size in step.node.attributes["shape"]]
    constant = step.network.constants.get(inputs[1]) if len(inputs) > 1 else None
    return None if constant is None else [int(size) for size in constant.reshape(-1)]


def flattened(step: Step) -> Axes | None:
    """Two axes: those before `axis` together, and the others; the batch stays by itself or leads."""
    data, after = step.of(0), step.made or (None, None)
    axis = int(step.node.attributes.get("axis", 1))
    if not data or data[0] != whole("N", data[0][0].size if data[0] else None):
        return whole_axes((None, None), after)
    if axis == 1:
        rest = regroup(data[1:], after[1:])
        return (data[0], *rest) if rest else whole_axes(("N", None), after)
    merged = regroup(data[1:], after) if data[0][0].size == 1 and axis > 1 else None
    return ((*data[0], *merged[0]), merged[1]) if merged else whole_axes((None, None), after)
