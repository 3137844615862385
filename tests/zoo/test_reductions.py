"""Reductions and receptive fields, held against what changes when blocks of pixels do."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from math import ceil, floor

import pytest

from service.values import Layer
from tests.builders import known
from tests.zoo.oracles.changes import BLOCK, blocks
from tests.zoo.subjects import Subject

pytestmark = pytest.mark.zoo

BOUNDED = ("exact", "upper_bound")
# Inception's last map has 8 cells of 299 pixels, 1.17 reductions each; an error is a factor of 2 at least.
PLAUSIBLE = 1.5


def test_reductions(subject: Subject, record_property: Callable[[str, object], None]) -> None:
    layers = [layer for layer in subject.model.layers(subject.sizes[0]).layers if _is_map(layer)]
    known = [layer for layer in layers if layer.reduction]
    wrong = [reason for layer in known for reason in _faults(subject, layer)]
    record_property("layers", len(layers))
    record_property("without", len(layers) - len(known))
    record_property("fields", sum(layer.receptive_field.status in BOUNDED for layer in known))
    record_property("wrong", len({reason.split(" ")[0] for reason in wrong}))
    if wrong:
        pytest.fail(f"{len(wrong)} contradictions, the first: {wrong[0]}", pytrace=False)


def _is_map(layer: Layer) -> bool:
    """Of four axes, and of more than one cell: a pooled map has no rows that could lie anywhere."""
    shape = layer.shape
    if shape is None or len(shape) != 4 or None in shape or layer.dtype != "float32":
        return False
    return (1, 1) not in (shape[1:3], shape[2:])


def _faults(subject: Subject, layer: Layer) -> Iterator[str]:
    """What contradicts a layer's reduction or field."""
    for axis, spatial in enumerate(layer.spatial_axes if layer.has_space else ()):
        side = subject.shape[1 + axis]
        reasons = list(_implausible(layer, axis, side))
        for weights, runs in subject.changes.items():
            seen = [None if (found := run[layer.name]) is None else found[spatial - 1] for run in runs]
            if layer.receptive_field.status in BOUNDED:
                reasons += _outside(layer, axis, side, seen, weights)
            if weights == "positive" and _moves(layer):
                reasons += _moved_otherwise(layer, axis, seen)
        yield from (f"{layer.name} ({layer.op}) axis {axis}: {reason}" for reason in reasons)


def _moves(layer: Layer) -> bool:
    """Whether what a block changes lies further along by just as many cells as the block does.

    Attention within windows changes whole windows, a mean over the map all of it, and the border that Pad
    adds never changes; their reductions are held against the map's size, and their fields against the blocks.
    """
    return layer.receptive_field.status == "exact" and layer.op != "Pad"


def _cells(layer: Layer, axis: int) -> int:
    return known(known(layer.shape)[layer.spatial_axes[axis]])


def _implausible(layer: Layer, axis: int, side: int) -> Iterator[str]:
    """A map has about as many cells as the input has reductions, less what unpadded convolutions take.

    A slice is a part of a map, such as the pieces that a roll is put together from.
    """
    if layer.op == "Slice":
        return
    cells, reduction = _cells(layer, axis), known(layer.reduction)[axis]
    pixels = side / cells
    if cells > 1 and not reduction / PLAUSIBLE < pixels < reduction * PLAUSIBLE:
        yield f"{cells} cells of {side} pixels, the reduction is {reduction}"


def _outside(layer: Layer, axis: int, side: int, seen: list[list[int] | None], weights: str) -> Iterator[str]:
    """Cells that changed without the block in their field, and such as must have changed but did not."""
    must = weights == "positive" and layer.receptive_field.status == "exact"
    last = _cells(layer, axis) - 1
    for block, cells in zip(blocks(side), seen, strict=True):
        low, high = _expected(layer, axis, block)
        inside = cells is None or (low <= cells[0] and cells[1] <= high)
        misses = (cells is not None and _misses(low, high, cells, last)) if must else False
        if not inside or misses:
            yield f"pixels {block} change cells {cells} with {weights} weights, the field says {(low, high)}"


def _expected(layer: Layer, axis: int, block: tuple[int, int]) -> tuple[int, int]:
    """The first and last cell whose field holds a pixel of a block, on a map without borders."""
    field = layer.receptive_field
    start, size = (Fraction(pair[axis]) for pair in (known(field.start), known(field.size)))
    reduction = known(layer.reduction)[axis]
    return ceil((block[0] - start - size + 1) / reduction), floor((block[1] - start) / reduction)


def _misses(low: int, high: int, cells: list[int], last: int) -> bool:
    """Whether a bound inside the map was not reached."""
    return (low > 0 and cells[0] != low) or (high < last and cells[1] != high)


def _moved_otherwise(layer: Layer, axis: int, seen: list[list[int] | None]) -> Iterator[str]:
    """A block further along changes cells further along, by the reduction; borders aside."""
    steps = BLOCK / known(layer.reduction)[axis]
    last = _cells(layer, axis) - 1
    for first, second, edge in ((seen[0], seen[1], 1), (seen[2], seen[3], 0)):
        if first is None or second is None or {first[edge], second[edge]} & {0, last}:
            continue
        moved = second[edge] - first[edge]
        if abs(moved - steps) >= 1:
            yield f"{BLOCK} pixels move the changed cells by {moved}, not by {steps}"
