"""Tiles side by side: where each lies, how many pixels a cell gets, and a vector's bars."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.output.pictures.scales import LEVELS, NO_LEVEL
from service.parameters import Drawing

Indices = npt.NDArray[np.uint8]
GAP = 1
# The default scale is the largest with which a picture stays within this, in pixels.
_SIDE = 1024
_BAR_HEIGHT = 64
_WIDEST_BAR = 16


@dataclass(frozen=True)
class Mosaic:
    """`count` tiles in rows of `columns`, row-major, each of `cells` (y, x), `scale` (y, x) pixels a cell."""

    count: int
    columns: int
    cells: tuple[int, int]
    scale: tuple[int, int]

    @property
    def rows(self) -> int:
        """Rows of tiles, the last perhaps not full."""
        return -(-self.count // self.columns)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels; gaps lie between tiles, none around."""
        tile = self.cells[0] * self.scale[0], self.cells[1] * self.scale[1]
        return self.rows * (tile[0] + GAP) - GAP, self.columns * (tile[1] + GAP) - GAP


def lay_out(count: int, cells: tuple[int, int], drawing: Drawing) -> Mosaic:
    """A mosaic of maps; without `columns` about as many as rows, without `scale` within 1024 pixels."""
    columns = min(drawing.columns or math.ceil(math.sqrt(count)), count)
    one = Mosaic(count, columns, cells, (1, 1))
    scale = drawing.scale or max(min(_room(one.rows, cells[0]), _room(columns, cells[1])), 1)
    return Mosaic(count, columns, cells, (scale, scale))


def lay_out_bars(count: int, drawing: Drawing) -> Mosaic:
    """One bar a channel, 64 pixels high and `scale` wide; twice as many in a row as there would be maps."""
    columns = min(drawing.columns or math.ceil(2 * math.sqrt(count)), count)
    width = drawing.scale or max(min(_room(columns, 1), _WIDEST_BAR), 1)
    return Mosaic(count, columns, (_BAR_HEIGHT, 1), (1, width))


def assemble(tiles: Indices, mosaic: Mosaic) -> Indices:
    """One picture (H, W) of tiles (count, *cells); gaps and places without a tile are `NO_LEVEL`.

    Pixels of one cell are equal: a picture is enlarged by whole numbers only.
    """
    height, width = mosaic.cells
    down, right = mosaic.scale
    places = np.full((mosaic.rows * mosaic.columns, height, width), NO_LEVEL, np.uint8)
    places[: mosaic.count] = tiles
    rows = places.reshape(mosaic.rows, mosaic.columns, height, width).transpose(0, 2, 1, 3)
    wide = rows.repeat(right, axis=3)
    shape = mosaic.rows, height * down + GAP, mosaic.columns, width * right + GAP
    canvas = np.full(shape, NO_LEVEL, np.uint8)
    canvas[:, :-GAP, :, :-GAP] = wide.repeat(down, axis=1)
    return canvas.reshape(shape[0] * shape[1], -1)[:-GAP, :-GAP]


def draw_bars(t: npt.NDArray[np.float64], levels: Indices, zero: float) -> Indices:
    """Tiles (C, 64, 1) of `t` (C, 1, 1) in 0..1 and its levels: a bar from zero to the value.

    The ground has zero's level, so that a dead channel is an empty tile; NaN is a tile of `NO_LEVEL`.
    """
    heights = (np.arange(_BAR_HEIGHT)[::-1, None] + 0.5) / _BAR_HEIGHT
    inside = (heights > np.minimum(t, zero)) & (heights < np.maximum(t, zero))
    ground = round(zero * (LEVELS - 1))
    return np.where(inside | np.isnan(t), levels, np.uint8(ground))


def _room(tiles: int, cells: int) -> int:
    return (_SIDE - (tiles - 1) * GAP) // (tiles * cells)
