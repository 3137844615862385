"""One spatial axis: where cells lie in the network's input, and which pixels they can see.

The forward form of Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019, https://doi.org/10.23915/distill.00021: with jump j, first pixel b, size r and centre c
(b = c = 0, r = j = 1 at the input), a window of k' = d(k - 1) + 1 cells with stride s and p cells of
padding at the begin gives b - pj, r + (k' - 1)j, c + ((k' - 1)/2 - p)j and j s, rows and columns apart.
Where branches of one jump meet, the field is the hull of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from service.engine.layers.parts import Axes
from service.engine.nodes import Network, Node
from service.values import FieldStatus

# From the first pixel up to and without the second.
Range = tuple[Fraction | int, Fraction | int]


@dataclass(frozen=True)
class Extent:
    """One spatial axis of a tensor, in pixels of the input, which has `span` of them along it.

    Cell u sees `start + u * jump` to `start + u * jump + size - 1` and has `centre + u * jump` in its
    middle, by local windows alone. `jump` and `centre` are None where there is no such axis; `start`
    and `size` are meant only where `status` is exact or upper_bound. No cell sees a pixel outside of
    `visible`, from its first number up to and without its second. `rolled` (k, n) says that cell u lies
    where cell (u + k) mod n would, `is_flipped` that the cells lie in the opposite order.
    """

    span: int | None
    jump: Fraction | None = Fraction(1)
    centre: Fraction | None = Fraction(0)
    start: Fraction = Fraction(0)
    size: Fraction = Fraction(1)
    status: FieldStatus = "exact"
    visible: Range | None = None
    rolled: tuple[int, int] | None = None
    is_flipped: bool = False

    @property
    def local(self) -> bool:
        """Whether start and size are meant."""
        return self.status in ("exact", "upper_bound")

    def collapsed(self) -> "Extent":
        """Everything along this axis in one cell."""
        return Extent(self.span, None, None, status="whole_input", visible=self.visible)

    def mixed(self) -> "Extent":
        """Every cell sees everything, at its old place."""
        return replace(self, status="unknown" if self.status == "unknown" else "whole_input")

    def lost(self) -> "Extent":
        """No axis any more: whole stays whole, the rest is unknown."""
        status: FieldStatus = "whole_input" if self.status == "whole_input" else "unknown"
        return Extent(self.span, None, None, status=status, visible=self.visible)

    def unclear(self) -> "Extent":
        """Cells are where they were, what they see is not known."""
        return replace(self, status="unknown")

    def window(self, reach: int, stride: int, pad: int) -> "Extent":
        """Each cell sees `reach` cells further, every `stride`-th one from `pad` before the begin."""
        return self.sampled(
            Fraction(stride), Fraction(-pad), (Fraction(0), Fraction(reach)), Fraction(reach, 2)
        )

    def sampled(
        self, step: Fraction, offset: Fraction, reach: tuple[Fraction, Fraction], middle: Fraction
    ) -> "Extent":
        """Cell u sees the cells `u * step + offset - reach[0]` to `u * step + offset + reach[1]` of this.

        Its own middle lies at `u * step + offset + middle`.
        """
        if self.jump is None or (step == 1 and not (offset or any(reach) or middle)):
            return self
        return replace(
            self.in_order(),
            jump=self.jump * step,
            centre=None if self.centre is None else self.centre + (offset + middle) * self.jump,
            start=self.start + (offset - reach[0]) * self.jump,
            size=self.size + (reach[0] + reach[1]) * self.jump,
        )

    def in_order(self) -> "Extent":
        """For a reader of neighbours: those of cells that were rolled or flipped are not followed."""
        if self.rolled is None and not self.is_flipped:
            return self
        status: FieldStatus = "whole_input" if self.status == "whole_input" else "unknown"
        return replace(self, rolled=None, is_flipped=False, centre=None, status=status)

    def block(self, cells: int) -> "Extent":
        """Every cell sees all of its window of so many cells."""
        if self.rolled or self.is_flipped:
            return replace(self, status=self.in_order().status)
        reach = Fraction(cells - 1)
        return self.sampled(Fraction(1), Fraction(0), (reach, reach), Fraction(0)).bounded()

    def spread(self, block: int) -> "Extent":
        """Each cell becomes a block of cells, whose values come from channels."""
        behind = Fraction(block - 1, block)
        return self.sampled(Fraction(1, block), Fraction(0), (behind, Fraction(0)), -behind / 2).bounded()

    def clipped(self, before: "Extent", cells_before: int, cells: int | None) -> "Extent":
        """With what is visible after an operator that read so many cells and made `cells`."""
        if self is before:
            return self
        if self.jump is None or before.jump is None or before.visible is None or not cells:
            return replace(self, visible=before.visible)
        low, high = before.visible
        first, last = before.union(cells_before)
        own_first, own_last = self.union(cells)
        return replace(self, visible=(max(low, first, own_first), min(high, last, own_last)))

    def union(self, cells: int) -> Range:
        """All pixels that so many cells see by their windows."""
        return self.start, self.start + (cells - 1) * (self.jump or 0) + self.size

    def checked(self, cells: int) -> "Extent":
        """Return the extent to report: a field with a border that no cell sees is not exact."""
        if self.status != "exact" or self.visible is None or self.span is None:
            return self.in_order()
        first, last = self.union(cells)
        sees_less = max(first, 0) < self.visible[0] or min(last, self.span) > self.visible[1]
        return (self.bounded() if sees_less else self).in_order()

    def bounded(self) -> "Extent":
        """The field is no longer exact."""
        return replace(self, status="upper_bound") if self.status == "exact" else self


@dataclass(frozen=True)
class Axis:
    """One spatial axis at one node: its place in the tensors read and made."""

    node: Node
    network: Network
    place: int
    rank: int
    before: int | None
    after: int | None
    axes: Axes

    def entry(self, name: str, default: int, offset: int = 2) -> int:
        """This axis's entry of an attribute that lists spatial axes."""
        values = self.node.attributes.get(name) or ()
        index = self.place - offset
        return int(values[index]) if 0 <= index < len(values) else default


def join(extents: Sequence[Extent]) -> Extent:
    """Branches that meet: the hull where their jumps agree, unknown where they do not."""
    if len(extents) == 1:
        return extents[0]
    placed = [e for e in extents if e.jump is not None]
    spans = {e.span for e in extents}
    orders = {(e.rolled, e.is_flipped) for e in placed}
    if len(spans) > 1 or len({e.jump for e in placed}) > 1 or len(orders) > 1:
        return Extent(None, None, None, status="unknown")
    centres = [e.centre for e in placed if e.centre is not None]
    centre = (min(centres) + max(centres)) / 2 if centres and len(centres) == len(placed) else None
    visible = hull([e.visible for e in extents])
    found = replace(placed[0] if placed else extents[0], centre=centre, visible=visible)
    statuses = {e.status for e in extents}
    for status in ("unknown", "whole_input"):
        if status in statuses:
            return replace(found, status=status)
    start = min(e.start for e in extents)
    size = max(e.start + e.size for e in extents) - start
    joined_status: FieldStatus = "exact" if statuses == {"exact"} else "upper_bound"
    return replace(found, start=start, size=size, status=joined_status)


def hull(ranges: Sequence[Range | None]) -> Range | None:
    """The range over several, None where one is unknown."""
    known = [seen for seen in ranges if seen is not None]
    if len(known) < len(ranges) or not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)
