"""A heat map laid on the photograph where the layer's geometry says that its cells lie."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.values import Layer, Picture, Placement, Window

Doubles = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
# A larger photograph is shrunk first: a heat map has no detail to fill more.
_LONGEST_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Backdrop:
    """The photograph that a map was made from, and where it lies in the network's input."""

    picture: Picture
    placement: Placement


@dataclass(frozen=True)
class _Axis:
    """Geometry along y or x: photograph -> tensor by scale and offset -> cell by centre and reduction."""

    scale: float
    offset: float
    centre: Fraction
    reduction: Fraction
    first: int

    def cells(self, pixels: Doubles) -> Doubles:
        """Cell coordinates, 0 in the middle of the first cell, of pixels in edge coordinates.

        `t = p * scale + offset`, `u = (t - 1/2 - centre) / reduction - first`: half a pixel comes
        off because `centre` counts from the middle of pixel 0 and `t` from its edge.
        """
        tensor = pixels * self.scale + self.offset
        return (tensor - 0.5 - float(self.centre)) / float(self.reduction) - self.first


@dataclass(frozen=True, eq=False)
class _Samples:
    """The pixels from `first` on that lie on cells: between `low` and `high`, with `weight` of high."""

    first: int
    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: Doubles

    @property
    def pixels(self) -> slice:
        return slice(self.first, self.first + len(self.low))


def place(t: Doubles, backdrop: Backdrop, layer: Layer, window: Window | None) -> tuple[Pixels, Doubles]:
    """The photograph and the heat at each of its pixels.

    The photograph is shrunk by area to at most 1024 pixels on its long side. Heat is interpolated
    bilinearly between cell centres; up to half a cell beyond the outermost it stays the same, and
    further out, where the network saw nothing of the photograph or the map was cut, it is NaN.

    Args:
        t: (H, W) in 0..1 or NaN.
        window: which cells `t` holds; None for all.

    Returns:
        pixels (h, w, 3) uint8 and heat (h, w) float64 in 0..1 or NaN.
    """
    assert window is None or t.shape == (window.height, window.width)
    picture = backdrop.picture
    photo = _shrunk(picture)
    origin = (window.y, window.x) if window else (0, 0)
    rows, columns = (
        _sample(_axis(backdrop.placement, layer, axis, origin[axis]), picture, photo, t.shape[axis], axis)
        for axis in (0, 1)
    )
    heat = np.full(photo.shape[:2], np.nan)
    heat[rows.pixels, columns.pixels] = _interpolate(t, rows, columns)
    return photo, heat


def blend(photo: Pixels, heat: Pixels, shown: npt.NDArray[np.bool_], image_weight: float) -> Pixels:
    """`image_weight * photo + (1 - image_weight) * heat` where `shown` (h, w), elsewhere the photograph."""
    mixed = photo * np.float32(image_weight) + heat * np.float32(1 - image_weight)
    return np.where(shown[..., None], np.rint(mixed).astype(np.uint8), photo)


def _shrunk(picture: Picture) -> Pixels:
    longest = max(picture.size)
    if longest <= _LONGEST_SIDE:
        return picture.pixels
    height, width = (max(round(side * _LONGEST_SIDE / longest), 1) for side in picture.size)
    return np.asarray(picture.image.resize((width, height), Image.Resampling.BOX))


def _axis(placement: Placement, layer: Layer, axis: int, first: int) -> _Axis:
    assert layer.centre is not None
    assert layer.reduction is not None
    return _Axis(
        placement.scale[axis], placement.offset[axis], layer.centre[axis], layer.reduction[axis], first
    )


def _sample(geometry: _Axis, picture: Picture, photo: Pixels, count: int, axis: int) -> _Samples:
    shrink = picture.size[axis] / photo.shape[axis]
    u = geometry.cells((np.arange(photo.shape[axis]) + 0.5) * shrink)
    covered = np.flatnonzero((u >= -0.5) & (u <= count - 0.5))
    u = np.clip(u[covered], 0, count - 1)
    low = np.floor(u).astype(np.intp)
    return _Samples(int(covered[0]) if covered.size else 0, low, np.minimum(low + 1, count - 1), u - low)


def _interpolate(t: Doubles, rows: _Samples, columns: _Samples) -> Doubles:
    """Rows first, then columns; NaN reaches as far as its cell's share."""
    down = rows.weight[:, None]
    tall = t[rows.low] * (1 - down) + t[rows.high] * down
    return tall[:, columns.low] * (1 - columns.weight) + tall[:, columns.high] * columns.weight
