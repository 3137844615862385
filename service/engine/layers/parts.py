"""An axis as a product of parts: what a reshape makes of rows, columns and channels, and can undo.

A map's axis holds one part, all of its role. A reshape merges parts (rows and columns to tokens) and splits
them (an image into windows); a transposition moves them. Since each part knows where its steps lie along
the axis that it comes from, rows are known as rows again once their parts are together. Elements lie
row-major, the last axis fastest, and so do the parts of an axis.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

Shape = tuple[int | None, ...]
# "N", "C", "H", "W", "c" (one of several axes that a channel axis was split into) or None.
Roles = tuple[str | None, ...]
SPACE = ("H", "W")
# Every value along the part is the same, as Expand makes it.
REPEATED = "="


@dataclass(frozen=True)
class Part:
    """`size` steps of `step` cells each along the axis of a role that has `total` cells."""

    role: str | None
    size: int
    step: int = 1
    total: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its role's axis."""
        return self.size == self.total

    @property
    def is_major(self) -> bool:
        """Whether it spans its role's axis, though perhaps in steps of several cells."""
        return self.size * self.step == self.total

    def split(self, major: int) -> "tuple[Part, Part]":
        """Into a part of `major` steps and one of the cells within each."""
        minor = self.size // major
        return replace(self, size=major, step=self.step * minor), replace(self, size=minor)


Axis = tuple[Part, ...]
Axes = tuple[Axis, ...]


def whole(role: str | None, size: int | None) -> Axis:
    """A whole axis of a role; an unknown size is written 0."""
    return (Part(role, size or 0, 1, size or 0),)


def whole_axes(roles: Roles, shape: Shape | None) -> Axes:
    """Axes that are each one role's."""
    sizes = shape if shape is not None and len(shape) == len(roles) else (None,) * len(roles)
    return tuple(whole(role, size) for role, size in zip(roles, sizes, strict=True))


def sizes_of(axes: Axes) -> list[int]:
    """The size of each axis, 0 where it is unknown."""
    return [prod(part.size for part in axis) for axis in axes]


def roles_of(axes: Axes) -> Roles:
    """Each axis' role; None for one that is a mixture of several, or a part of rows or columns."""
    return tuple(_role_of(axis, axes) for axis in axes)


def place_of(axes: Axes, role: str) -> int | None:
    """Which axis has the rows or columns: one part that spans them."""
    return next((i for i, axis in enumerate(axes) if _is_spatial(axis, role)), None)


def parts_of(axes: Axes, role: str) -> list[Part]:
    """All parts of a role."""
    return [part for axis in axes for part in axis if part.role == role]


def _is_spatial(axis: Axis, role: str) -> bool:
    return len(axis) == 1 and axis[0].role == role and axis[0].is_major


def _role_of(axis: Axis, axes: Axes) -> str | None:
    if len(axis) == 1 and axis[0].role not in ("C", REPEATED):
        return axis[0].role if axis[0].is_major else None
    if not axis or any(part.role not in ("C", *SPACE) for part in axis):
        return None
    if "C" not in {part.role for part in axis} or not _are_minor(axis, axes):
        return None
    channels = [part for part in parts_of(axes, "C") if part.size != 1]
    own = [part for part in axis if part.role == "C" and part.size != 1]
    return "C" if len(own) == len(channels) else "c"


def _are_minor(axis: Axis, axes: Axes) -> bool:
    """Whether what an axis holds of rows and columns lies within the steps of another axis."""
    roles = {part.role for part in axis} & set(SPACE)
    minor = all(not part.is_major for part in axis if part.role in SPACE)
    return minor and all(place_of(axes, role) is not None for role in roles if role)


def settled(axes: Axes, role: str) -> Axes:
    """Count a step of several rows or columns as one cell; parts within a step become channels."""
    place = place_of(axes, role)
    if place is None or axes[place][0].step == 1:
        return axes
    others = [_without(axis, role, "C") for axis in axes]
    others[place] = whole(role, axes[place][0].size)
    return tuple(others)


def forgotten(axes: Axes, role: str) -> Axes:
    """The axes without knowledge of a role."""
    return tuple(_without(axis, role, None) for axis in axes)


def _without(axis: Axis, role: str, instead: str | None) -> Axis:
    return tuple(Part(instead, part.size, 1, part.size) if part.role == role else part for part in axis)


def regroup(axes: Axes, after: Shape) -> Axes | None:
    """The axes after a reshape of something whose first axis is not the batch, or has its size.

    None where the sizes do not fit each other.
    """
    if (
        None in after
        or 0 in after
        or 0 in sizes_of(axes)
        or prod(sizes_of(axes)) != prod(s or 1 for s in after)
    ):
        return None
    left = [part for axis in axes for part in axis if part.size != 1]
    made = []
    for size in after:
        taken = _take(left, size or 1)
        if taken is None:
            return None
        made.append(_merged(taken))
    return tuple(made)


def _take(left: list[Part], size: int) -> list[Part] | None:
    """Parts from the front that make up a size; one that is too large is split."""
    taken: list[Part] = []
    while size > 1:
        part = left.pop(0)
        if part.size <= size and size % part.size == 0:
            taken.append(part)
            size //= part.size
        elif part.size % size == 0:
            major, minor = part.split(size)
            taken.append(major)
            left.insert(0, minor)
            size = 1
        else:
            return None
    return taken


def _merged(parts: Iterable[Part]) -> Axis:
    """Neighbours that were one part before are one again."""
    merged: list[Part] = []
    for part in parts:
        last = merged[-1] if merged else None
        joins = last is not None and last.role == part.role and last.role is not None
        if last is not None and joins and last.total == part.total and last.step == part.step * part.size:
            merged[-1] = replace(part, size=last.size * part.size)
        else:
            merged.append(part)
    return tuple(merged)


def shuffled(axes: Axes) -> Axes:
    """Rows and columns that channels were moved into (pixel shuffle), as rows and columns of more cells."""
    return tuple(_shuffled(axis) for axis in axes)


def _shuffled(axis: Axis) -> Axis:
    first, *rest = axis or (Part(None, 1),)
    if first.role not in SPACE or not first.is_whole or not rest or {part.role for part in rest} != {"C"}:
        return axis
    return whole(first.role, prod(part.size for part in axis))


def same_sizes(axes: Axes, shape: Sequence[int | None] | None) -> bool:
    """Whether a tensor of a shape has axes of just these sizes."""
    return shape is not None and [size or 0 for size in shape] == sizes_of(axes)
