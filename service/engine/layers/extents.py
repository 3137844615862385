"""One spatial axis: where cells lie in the network's input, and which pixels they can see.

The forward form of Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks",
Distill 2019, https://doi.org/10.23915/distill.00021: with jump j, first pixel b, size r and centre c
(b = c = 0, r = j = 1 at the input), a window of k' = d(k - 1) + 1 cells with stride s and p cells of
padding at the begin gives b - pj, r + (k' - 1)j, c + ((k' - 1)/2 - p)j and j s, rows and columns apart.
Where branches of one jump meet, the field is the hull of theirs.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

from service.engine.layers.reshapes import Roles
from service.engine.nodes import Network, Node
from service.values import FieldStatus


@dataclass(frozen=True)
class Extent:
    """One spatial axis of a tensor, in pixels of the input, which has `span` of them along it.

    Cell u sees `start + u * jump` to `start + u * jump + size - 1` and has `centre + u * jump` in its
    middle, by local windows alone. `jump` and `centre` are None where there is no such axis; `start`
    and `size` are meant only where `status` is exact or upper_bound.
    """

    span: int | None
    jump: Fraction | None = Fraction(1)
    centre: Fraction | None = Fraction(0)
    start: Fraction = Fraction(0)
    size: Fraction = Fraction(1)
    status: FieldStatus = "exact"

    @property
    def local(self) -> bool:
        """Whether start and size are meant."""
        return self.status in ("exact", "upper_bound")

    def collapsed(self) -> "Extent":
        """Everything along this axis in one cell."""
        return Extent(self.span, None, None, status="whole_input")

    def mixed(self) -> "Extent":
        """Every cell sees everything, at its old place."""
        return replace(self, status="unknown" if self.status == "unknown" else "whole_input")

    def lost(self) -> "Extent":
        """No axis any more: whole stays whole, the rest is unknown."""
        status: FieldStatus = "whole_input" if self.status == "whole_input" else "unknown"
        return Extent(self.span, None, None, status=status)

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
        if self.jump is None:
            return self
        return replace(
            self,
            jump=self.jump * step,
            centre=None if self.centre is None else self.centre + (offset + middle) * self.jump,
            start=self.start + (offset - reach[0]) * self.jump,
            size=self.size + (reach[0] + reach[1]) * self.jump,
        )

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
    roles: Roles

    def entry(self, name: str, default: int, offset: int = 2) -> int:
        """This axis's entry of an attribute that lists spatial axes."""
        values = self.node.attributes.get(name) or ()
        index = self.place - offset
        return int(values[index]) if 0 <= index < len(values) else default
