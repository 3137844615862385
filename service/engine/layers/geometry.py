"""Where each layer lies in the network's input and what it sees of it, rows and columns apart.

One spatial axis at a time: `extents` has the formulas, `spatial` the operators. What is followed are the
cells of a grid; tokens, windows and shuffled channels hold the same cells in another order (`parts`), so
that rows which come back are known again. Where branches of one jump meet, the field is the hull of theirs.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from service.engine.layers.extents import Axis, Extent, hull, join
from service.engine.layers.mixing import mix, multiply
from service.engine.layers.operators import CONTRACTIONS, ELEMENTWISE, KNOWN_DOMAINS, names
from service.engine.layers.parts import Axes, parts_of, place_of, sizes_of
from service.engine.layers.spatial import RULES
from service.engine.nodes import OF_SIZES, Network, Node
from service.values import FieldStatus, ReceptiveField

UNKNOWN_FIELD = ReceptiveField(None, None, "unknown")
ROLE_OF_AXIS = {"y": "H", "x": "W"}
JOINING = ELEMENTWISE | {"Concat", "QLinearConcat"}
# They put the same cells into another order.
VIEWS = names("Reshape Transpose Squeeze Unsqueeze Flatten Identity")


@dataclass(frozen=True)
class Geometry:
    """Rows and columns of one tensor."""

    y: Extent
    x: Extent

    @property
    def reduction(self) -> tuple[Fraction, Fraction] | None:
        """Input pixels from one cell to the next, (y, x)."""
        return None if self.y.jump is None or self.x.jump is None else (self.y.jump, self.x.jump)

    @property
    def centre(self) -> tuple[Fraction, Fraction] | None:
        """The input pixel in the middle of cell (0, 0)."""
        return None if self.y.centre is None or self.x.centre is None else (self.y.centre, self.x.centre)

    @property
    def receptive_field(self) -> ReceptiveField:
        """What a cell sees; where one axis is the whole input, the field is called that as a whole."""
        both = {self.y.status, self.x.status}
        if "unknown" in both:
            return UNKNOWN_FIELD
        if "whole_input" in both:
            spans = (self.y.span, self.x.span)
            size = None if None in spans else (float(spans[0] or 0), float(spans[1] or 0))
            return ReceptiveField(size, (0.0, 0.0), "whole_input")
        status: FieldStatus = "upper_bound" if "upper_bound" in both else "exact"
        size = (float(self.y.size), float(self.x.size))
        return ReceptiveField(size, (float(self.y.start), float(self.x.start)), status)


@dataclass(frozen=True)
class _Known:
    """What is known when a node is reached: the axes of all tensors and the grids up to there."""

    network: Network
    axes: Mapping[str, Axes]
    found: Mapping[str, Geometry]


def find_geometry(network: Network, axes: Mapping[str, Axes]) -> dict[str, Geometry]:
    """The geometry of every tensor that sees an input with rows and columns."""
    found = {spec.name: g for spec in network.inputs if (g := _root(network, spec.name, axes))}
    known = _Known(network, axes, found)
    for node in network.nodes:
        seen = [name for name in node.data_inputs if name in found]
        if not seen or (node.op in OF_SIZES and node.domain == ""):
            continue
        for name in node.makes:
            y, x = (_made(node, name, axis, known) for axis in ("y", "x"))
            found[name] = Geometry(y, x)
    return {n: Geometry(*(_shown(g, axes.get(n, ()), a) for a in ("y", "x"))) for n, g in found.items()}


def _root(network: Network, name: str, axes: Mapping[str, Axes]) -> Geometry | None:
    own, shape = axes.get(name, ()), network.shape(name) or ()
    places = [place_of(own, role) for role in ("H", "W")]
    if None in places or len(shape) != len(own):
        return None
    y, x = (Extent(shape[place or 0], visible=(0, shape[place or 0] or 0)) for place in places)
    return Geometry(y, x)


def _shown(geometry: Geometry, axes: Axes, axis: str) -> Extent:
    """The extent along an axis of the tensor, where it has one: tokens and windows have no rows."""
    extent: Extent = getattr(geometry, axis)
    place = place_of(axes, ROLE_OF_AXIS[axis])
    if place is None:
        return extent.lost()
    step = axes[place][0].step
    shown = extent if step == 1 else extent.window(step - 1, step, 0)
    return shown.checked(axes[place][0].size)


def _made(node: Node, name: str, axis: str, known: _Known) -> Extent:
    """The extent of one made tensor along `axis`, y or x, in cells of its grid."""
    role, axes = ROLE_OF_AXIS[axis], known.axes
    extents = {n: getattr(known.found[n], axis) for n in node.data_inputs if n in known.found}
    made = parts_of(axes.get(name, ()), role)
    carrier = next((n for n in extents if parts_of(axes.get(n, ()), role)), None)
    if carrier is None or node.domain not in KNOWN_DOMAINS:
        return _without_axis(node, join(list(extents.values())), known.network, list(extents))
    if node.op in CONTRACTIONS and len(extents) > 1:
        return multiply(node, role, extents, axes, name)
    if len(extents) > 1 and node.op not in JOINING:
        return join(list(extents.values())).lost()
    found = _changed(node, name, role, known, extents, carrier)
    return found if made else found.lost()


def _changed(
    node: Node, name: str, role: str, known: _Known, extents: Mapping[str, Extent], carrier: str
) -> Extent:
    """What a node makes of the cells of one tensor, or of several that it joins."""
    axes, own = known.axes, known.axes[carrier]
    if node.op in VIEWS:
        return _viewed(extents[carrier], own, axes.get(name, ()), role)
    if (place := place_of(own, role)) is None:
        return mix(node, role, join(list(extents.values())), own, known.network)
    before, after = own[place][0].size, _cells(axes.get(name, ()), role)
    step = own[place][0].step
    if step != 1 and _total(axes.get(name, ()), role) != own[place][0].total:
        extents = {n: e.window(step - 1, step, 0) for n, e in extents.items()}
    if node.op in ELEMENTWISE:
        extents = {n: _stretched(e, _cells(axes.get(n, ()), role), after) for n, e in extents.items()}
    spot = Axis(node, known.network, place, len(own), before, after, own)
    if node.op in ("Concat", "QLinearConcat") and int(node.attributes.get("axis", 1)) % len(own) == place:
        pieces = [(extents.get(n), _cells(axes.get(n, ()), role)) for n in node.inputs]
        return rejoined(pieces)
    joined = join(list(extents.values()))
    return RULES[node.op](joined, spot).clipped(joined, before, after) if node.op in RULES else joined.lost()


def rejoined(pieces: Sequence[tuple[Extent | None, int | None]]) -> Extent:
    """Pieces that lie one behind the other in the same map, or that a roll has exchanged."""
    known = [(extent, cells) for extent, cells in pieces if extent is not None and cells]
    first, last = known[0][0], known[-1][0]
    if len(known) != len(pieces):
        return first.lost()
    if all(_follows(a, n, b) for (a, n), (b, _) in itertools.pairwise(known)):
        return replace(first, visible=hull([e.visible for e, _ in known]))
    if len(known) == 2 and _follows(last, known[1][1], first):
        cells = known[0][1] + known[1][1]
        return replace(last, rolled=(known[1][1], cells), visible=hull([first.visible, last.visible]))
    return first.lost()


def _follows(extent: Extent, cells: int, other: Extent) -> bool:
    """Whether `other` goes on where a piece of so many cells ends."""
    if extent.jump is None or extent.jump != other.jump or extent.rolled or other.rolled:
        return False
    alike = (extent.size, extent.status, extent.is_flipped) == (other.size, other.status, other.is_flipped)
    return alike and other.start == extent.start + cells * extent.jump


def _viewed(extent: Extent, before: Axes, after: Axes, role: str) -> Extent:
    """The same cells in another order; more of them where channels were moved into rows (pixel shuffle)."""
    total, made = _total(before, role), _total(after, role)
    if not total or not made or made % total:
        return extent.lost()
    return extent if made == total else extent.spread(made // total)


def _total(axes: Axes, role: str) -> int:
    """How many cells the grid has along a role's axis, 0 where there is none."""
    return next((part.total for part in parts_of(axes, role)), 0)


def _cells(axes: Axes, role: str) -> int | None:
    """How many cells a tensor has along the axis of that role."""
    place = place_of(axes, role)
    return sizes_of(axes)[place] or None if place is not None else None


def _without_axis(node: Node, joined: Extent, network: Network, seen: Sequence[str]) -> Extent:
    """What contracts all features of an image, or two maps, sees everything; the rest stays as it is."""
    if node.op not in CONTRACTIONS or node.domain not in KNOWN_DOMAINS:
        return joined.lost()
    shape = network.shape(seen[0])
    vector = shape is not None and len(shape) == 2 and shape[0] in (1, None)
    return joined.collapsed() if len(seen) > 1 or vector else joined.lost()


def _stretched(extent: Extent, before: int | None, after: int | None) -> Extent:
    """One local cell that is broadcast is seen from every cell: no interval fits."""
    return extent.unclear() if extent.local and before == 1 and after not in (1, None) else extent
