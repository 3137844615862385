"""Where each layer lies in the network's input and what it sees of it, rows and columns apart.

One spatial axis at a time: `extents` has the formulas, `spatial` the operators. Where branches of one
jump meet, the field is the hull of theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from service.engine.layers.extents import Axis, Extent
from service.engine.layers.operators import CONTRACTIONS, ELEMENTWISE, KNOWN_DOMAINS
from service.engine.layers.reshapes import Roles
from service.engine.layers.spatial import RULES
from service.engine.nodes import Network, Node
from service.values import FieldStatus, ReceptiveField

UNKNOWN_FIELD = ReceptiveField(None, None, "unknown")
ROLE_OF_AXIS = {"y": "H", "x": "W"}
JOINING = ELEMENTWISE | {"Concat", "QLinearConcat"}


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
    """What is known when a node is reached: the roles of all axes and the geometry up to there."""

    network: Network
    roles: Mapping[str, Roles]
    found: Mapping[str, Geometry]


def find_geometry(network: Network, roles: Mapping[str, Roles]) -> dict[str, Geometry]:
    """The geometry of every tensor that sees an input with rows and columns."""
    found = {spec.name: g for spec in network.inputs if (g := _root(network, spec.name, roles))}
    known = _Known(network, roles, found)
    for node in network.nodes:
        seen = [name for name in node.reads if name in found]
        if not seen or (node.op in ("Shape", "Size") and node.domain == ""):
            continue
        for name in node.makes:
            y, x = (_made(node, name, axis, known) for axis in ("y", "x"))
            found[name] = Geometry(y, x)
    return found


def _root(network: Network, name: str, roles: Mapping[str, Roles]) -> Geometry | None:
    labels, shape = roles.get(name, ()), network.shape(name) or ()
    if "H" not in labels or "W" not in labels or len(shape) != len(labels):
        return None
    return Geometry(Extent(shape[labels.index("H")]), Extent(shape[labels.index("W")]))


def _made(node: Node, name: str, axis: str, known: _Known) -> Extent:
    """The extent of one made tensor along `axis`, y or x."""
    role, network, roles = ROLE_OF_AXIS[axis], known.network, known.roles
    extents = {n: getattr(known.found[n], axis) for n in node.reads if n in known.found}
    if node.op in ELEMENTWISE:
        wide = _size(network, roles, name, role)
        extents = {n: _stretched(e, _size(network, roles, n, role), wide) for n, e in extents.items()}
    carrier = next((n for n in extents if role in roles.get(n, ())), None)
    joined = _join(list(extents.values()))
    if carrier is None or (len(extents) > 1 and node.op not in JOINING):
        joined = _without_axis(node, joined, network, list(extents))
    else:
        labels = roles[carrier]
        before, after = (_size(network, roles, n, role) for n in (carrier, name))
        place = Axis(node, network, labels.index(role), len(labels), before, after, labels)
        ruled = node.domain in KNOWN_DOMAINS and node.op in RULES
        joined = RULES[node.op](joined, place) if ruled else joined.lost()
    return joined if role in roles.get(name, ()) else joined.lost()


def _without_axis(node: Node, joined: Extent, network: Network, seen: Sequence[str]) -> Extent:
    """What contracts all features of an image, or two maps, sees everything; the rest stays as it is."""
    if node.op not in CONTRACTIONS or node.domain not in KNOWN_DOMAINS:
        return joined.lost()
    shape = network.shape(seen[0])
    vector = shape is not None and len(shape) == 2 and shape[0] in (1, None)
    return joined.collapsed() if len(seen) > 1 or vector else joined.lost()


def _size(network: Network, roles: Mapping[str, Roles], name: str, role: str) -> int | None:
    """How many cells a tensor has along the axis of that role."""
    shape, labels = network.shape(name), roles.get(name, ())
    fits = shape is not None and len(shape) == len(labels) and role in labels
    return shape[labels.index(role)] if fits and shape is not None else None


def _stretched(extent: Extent, before: int | None, after: int | None) -> Extent:
    """One local cell that is broadcast is seen from every cell: no interval fits."""
    return extent.unclear() if extent.local and before == 1 and after not in (1, None) else extent


def _join(extents: Sequence[Extent]) -> Extent:
    """Branches that meet: the hull where their jumps agree, unknown where they do not."""
    if len(extents) == 1:
        return extents[0]
    placed = [e for e in extents if e.jump is not None]
    spans = {e.span for e in extents}
    if len(spans) > 1 or len({e.jump for e in placed}) > 1:
        return Extent(None, None, None, status="unknown")
    centres = [e.centre for e in placed if e.centre is not None]
    centre = (min(centres) + max(centres)) / 2 if centres and len(centres) == len(placed) else None
    found = replace(extents[0], jump=placed[0].jump if placed else None, centre=centre)
    statuses = {e.status for e in extents}
    for status in ("unknown", "whole_input"):
        if status in statuses:
            return replace(found, status=status)
    start = min(e.start for e in extents)
    size = max(e.start + e.size for e in extents) - start
    joined_status: FieldStatus = "exact" if statuses == {"exact"} else "upper_bound"
    return replace(found, start=start, size=size, status=joined_status)
