"""What a reshape does to axes: judged by the order of elements in memory, row-major."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

# "N", "C", "H", "W", "c" (one of several axes that a channel axis was split into) or None.
Roles = tuple[str | None, ...]
Shape = tuple[int | None, ...]

# Stands for the batch's size in the value of a shape tensor.
BATCH = "N"


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
    return prod(s for s in rest if s) == prod(s for s in before[1:] if s is not None)


def regrouped(roles: Roles, before: Shape, after: Shape) -> Roles:
    """Match the axes of two shapes by their places in memory (row-major, the last axis fastest)."""
    if before == after:
        return roles
    if None in before or None in after or 0 in before or 0 in after:
        return (None,) * len(after)
    found: list[str | None] = [None] * len(after)
    for old, new in _groups([s or 1 for s in before], [s or 1 for s in after]):
        for place, role in zip(new, _carried([roles[i] for i in old], len(new), roles), strict=True):
            found[place] = role
    return tuple(found)


def _groups(before: list[int], after: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products; axes of size 1 belong to none."""
    left = [i for i, size in enumerate(before) if size != 1]
    right = [i for i, size in enumerate(after) if size != 1]
    while left and right:
        old, new = [left.pop(0)], [right.pop(0)]
        while (a := prod(before[i] for i in old)) != (b := prod(after[i] for i in new)):
            short, rest = (old, left) if a < b else (new, right)
            if not rest:
                return
            short.append(rest.pop(0))
        yield old, new


def _carried(old: list[str | None], count: int, every: Roles) -> list[str | None]:
    """One axis to one keeps its role; channels may be split and, once all are together, merged."""
    if len(old) == count == 1:
        return old
    if set(old) <= {"C", "c"}:
        whole = "C" in old or old.count("c") == every.count("c")
        return ["C" if whole else "c"] if count == 1 else ["c"] * count
    return [None] * count
