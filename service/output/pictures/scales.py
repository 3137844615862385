"""From values to 255 levels: which value is black, which is neutral, which saturates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.parameters import Drawing
from service.values import Array

Floats = npt.NDArray[np.floating]
# An odd number, so that zero of a signed map has a level of its own: the middle one. The 256th
# entry of a palette is left for what holds no number.
LEVELS = 255
NO_LEVEL = 255
# What leaks through an activation (SiLU to -0.28, hard-swish to -0.38, leaky ReLU) is drawn as zero
# while it stays below this part of the largest value; ELU and tanh do not.
_LEAK = 0.1


@dataclass(frozen=True, eq=False)
class Scale:
    """`t = (x - low) / (high - low)`; low and high are () or (C, 1, 1) float64, low below high.

    `smallest` and `largest` are those of the finite values.
    """

    low: Array
    high: Array
    signed: bool
    smallest: float
    largest: float

    @property
    def zero(self) -> float:
        """Where zero lies in 0..1; one place for all channels."""
        low, high = float(self.low.flat[0]), float(self.high.flat[0])
        return min(max(-low / (high - low), 0.0), 1.0)


def find_scale(values: Floats, drawing: Drawing, *, after_activation: bool) -> Scale:
    """The scale for `values` (C, H, W), which may hold NaN and infinities: those do not count.

    Unsigned maps go from 0, the first colour, to v; signed ones from -v to v with zero in the
    middle. v is the largest |x|, or with `clip` the percentile 100 - clip of |x|, of the layer or
    of each channel. A scale of each channel hides how weak a channel is; one without any value but
    zero stays at zero. `fixed` goes evenly from `vmin` to `vmax`: it is signed where zero lies
    between, and zero is in the middle where both are as far.
    """
    finite = _finite(values)
    smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if drawing.normalize == "fixed":
        assert drawing.vmin is not None
        assert drawing.vmax is not None
        low, high = np.array(drawing.vmin, np.float64), np.array(drawing.vmax, np.float64)
        signed = drawing.vmin < 0 < drawing.vmax
    else:
        signed = smallest < (-_LEAK * max(largest, 0.0) if after_activation else 0.0)
        high = _reach_of(values, finite, drawing)
        low = np.asarray(high * (-1.0 if signed else 0.0))
    return Scale(low, high, signed, smallest, largest)


def count_non_finite(values: Floats) -> int:
    """How many values are NaN or infinite."""
    return values.size - _finite(values).size


def fractions(values: Floats, scale: Scale) -> npt.NDArray[np.float64]:
    """`t` in 0..1, a new array of the shape of `values`; NaN stays, infinities and excesses saturate."""
    t = np.subtract(values, scale.low, dtype=np.float64)
    with np.errstate(over="ignore"):
        t /= scale.high - scale.low
    return np.clip(t, 0.0, 1.0, out=t)


def levels(t: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """`rint(254 t)`, halves to even, and `NO_LEVEL` for NaN; zero of a signed map is 127 exactly."""
    index = np.rint(t * (LEVELS - 1))
    np.copyto(index, NO_LEVEL, where=np.isnan(index))
    return index.astype(np.uint8)


def _reach_of(values: Floats, finite: Floats, drawing: Drawing) -> Array:
    if drawing.normalize == "layer":
        return np.array(_reach(finite, drawing.clip))
    reaches = [_reach(_finite(channel), drawing.clip) for channel in values]
    return np.array(reaches).reshape(-1, 1, 1)


def _reach(finite: Floats, clip: float) -> float:
    """The |x| that saturates; the largest where the percentile is zero, and 1 where all is zero."""
    if not finite.size:
        return 1.0
    largest = max(abs(float(finite.min())), abs(float(finite.max())))
    if not clip:
        return largest or 1.0
    # With float32 the interpolation between neighbours could overflow.
    magnitudes = np.abs(finite, dtype=np.float64)
    return float(np.percentile(magnitudes, 100 - clip, overwrite_input=True)) or largest or 1.0


def _finite(values: Floats) -> Floats:
    """The finite values; `values` itself, not copied, where all are."""
    if values.size and np.isfinite(values.min()) and np.isfinite(values.max()):
        return values
    return values[np.isfinite(values)]
