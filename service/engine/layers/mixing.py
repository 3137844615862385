"""What happens to cells that have no axis of their own: tokens, windows, and products of two maps."""

from collections.abc import Mapping
from math import prod

from service.engine.layers.axis_rules import NORMALIZING_AXES, contracted, normalized_axes, reduced_axes
from service.engine.layers.extents import Extent, join
from service.engine.layers.operators import CONTRACTIONS
from service.engine.layers.parts import Axes, Axis, Part, parts_of
from service.engine.layers.spatial import POINTWISE, mixes_space
from service.engine.nodes import Network, Node

INSTANCES = ("InstanceNormalization", "GroupNormalization", "MeanVarianceNormalization")
PICKING = ("Gather", "Split", "Concat", "QLinearConcat")


def mix(node: Node, role: str, extent: Extent, axes: Axes, network: Network) -> Extent:
    """The extent behind an operator that reads cells merged with others, such as tokens.

    An operator over axes that hold none of them leaves them alone; one over all of them sees everything.
    """
    if node.op in INSTANCES or mixes_space(node):
        return _normalized(extent, parts_in(axes, set(range(2, len(axes))), role))
    if node.op in NORMALIZING_AXES:
        return _normalized(extent, parts_in(axes, normalized_axes(node, len(axes)), role))
    if node.op in POINTWISE:
        return extent
    if node.op.startswith(("Reduce", "Arg")):
        over = reduced_axes(network, node, len(axes))
        held = parts_in(axes, over or set(), role)
        return extent.lost() if over is None else _summed(extent, held, parts_of(axes, role))
    if node.op in CONTRACTIONS:
        return _summed(
            extent, parts_in(axes, {contracted(node, len(axes), network)}, role), parts_of(axes, role)
        )
    if node.op in PICKING:
        along = int(node.attributes.get("axis", 1 if "Concat" in node.op else 0)) % len(axes)
        return extent.lost() if parts_in(axes, {along}, role) else extent
    return extent if node.op in ("Slice", "Pad", "Expand", "Tile") else extent.lost()


def multiply(
    node: Node, role: str, extents: Mapping[str, Extent], axes: Mapping[str, Axes], name: str
) -> Extent:
    """The product of two maps: what is summed over, and columns that cannot be told from rows, are mixed."""
    left, right = (axes.get(n, ()) for n in node.inputs[:2])
    made = parts_of(axes.get(name, ()), role)
    joined = join([extents[n] for n in node.inputs[:2] if n in extents])
    if len(left) < 2 or len(right) < 2:
        return joined.lost()
    summed = _of(left[-1], role) + _of(right[-2], role)
    kept = parts_of(axes.get(name, ()), role)
    columns = _of(right[-1], role) if _of(left[-2], role) else []
    mixed = summed + columns
    if not made:
        return joined.collapsed() if any(part.is_major for part in mixed) else joined.lost()
    return _normalized(joined, mixed) if kept else joined.lost()


def parts_in(axes: Axes, places: set[int], role: str) -> list[Part]:
    """The parts of a role in some axes."""
    return [part for place in places for part in axes[place] if part.role == role]


def _of(axis: Axis, role: str) -> list[Part]:
    return [part for part in axis if part.role == role]


def _normalized(extent: Extent, held: list[Part]) -> Extent:
    """Every cell sees all cells of its axis, or those of its window."""
    if not held:
        return extent
    if any(part.is_major for part in held):
        return extent.mixed()
    return extent.block(prod(part.size for part in held if part.step == 1))


def _summed(extent: Extent, held: list[Part], every: list[Part]) -> Extent:
    if not held:
        return extent
    return extent.collapsed() if len(held) == len(every) else extent.lost()
