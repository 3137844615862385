"""Which cells of every 4-D tensor change when a block of input pixels does."""

import numpy as np
import onnx

from service.values import Array
from tests.zoo.oracles.positive import positive
from tests.zoo.oracles.uncut import Uncut

# As wide as the coarsest reduction, so that a pixel of it lies at the edge of some cell's field.
BLOCK = 32
# By tensor, the first and last changed position along each axis but the batch; None where none changed.
Extents = dict[str, list[list[int]] | None]


def blocks(side: int) -> list[tuple[int, int]]:
    """First and last pixel of each along one side: two from the start on, two up to the end."""
    starts = (0, BLOCK, side - 2 * BLOCK, side - BLOCK)
    return [(start, start + BLOCK - 1) for start in starts]


def measure(model: onnx.ModelProto, image: Array) -> dict[str, list[Extents]]:
    """For each of four blocks: `noise` with the file's weights, `positive` with positive ones."""
    return {
        "noise": _all_blocks(Uncut(model), image, image + 1),
        "positive": _all_blocks(Uncut(positive(model)), np.zeros_like(image), np.ones_like(image)),
    }


def _all_blocks(graph: Uncut, image: Array, other: Array) -> list[Extents]:
    before = {n: v for n, v in graph.run(image).items() if v.ndim == 4 and v.dtype == np.float32}
    found = []
    for rows, columns in zip(blocks(image.shape[2]), blocks(image.shape[3]), strict=True):
        changed = image.copy()
        place = (..., slice(rows[0], rows[1] + 1), slice(columns[0], columns[1] + 1))
        changed[place] = other[place]
        after = graph.run(changed)
        found.append({name: _extents(value, after[name]) for name, value in before.items()})
    return found


def _extents(before: Array, after: Array) -> list[list[int]] | None:
    places = np.nonzero(~((before == after) | (np.isnan(before) & np.isnan(after))))[1:]
    return [[int(p.min()), int(p.max())] for p in places] if places[0].size else None
