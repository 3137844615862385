"""Casting to fewer bits, with a stated bound on the error of every value."""

import numpy as np
import numpy.typing as npt

from service.errors import OutOfRange
from service.parameters import DtypeChoice
from service.values import Array, Layer

LEVELS = 255


def cast(layer: Layer, values: Array, dtype: DtypeChoice) -> Array:
    """The values as `dtype`, rounded to nearest within `error_bound`; infinity and NaN stay what they are.

    Raises:
        OutOfRange: a finite value would become infinite.
    """
    if dtype == "native" or values.dtype == dtype:
        return values
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype)
    if _overflowed(values, narrowed):
        largest = float(np.abs(values[np.isfinite(values)]).max())
        raise OutOfRange(
            f"layer {layer.name!r} holds values up to {largest:.6g}, beyond {np.finfo(dtype).max:g}, "
            f"the largest {dtype}: ask for a wider dtype",
            layer=layer.name,
        )
    return narrowed


def quantise(
    layer: Layer, values: Array, axes: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """ONNX's DequantizeLinear backwards: `x = (q - zero_point) * scale`, zero exact, `|error| <= scale`.

    One scale and zero point for all values along `axes`, which are kept with length one, so that
    both broadcast against q.

    Raises:
        OutOfRange: NaN, infinity or more than a float32 reaches, which no scale can hold.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise OutOfRange(
            f"layer {layer.name!r} holds NaN or infinite values, which uint8 cannot carry: ask for float32",
            layer=layer.name,
        )
    exact = values.astype(np.float64)
    low = np.minimum(exact.min(axis=axes, keepdims=True, initial=0.0), 0.0)
    high = np.maximum(exact.max(axis=axes, keepdims=True, initial=0.0), 0.0)
    # Smaller steps than float32's smallest normal number would not survive as float32.
    with np.errstate(over="ignore"):
        step = np.maximum((high - low) / LEVELS, np.finfo(np.float32).tiny)
    if step.max(initial=0.0) >= np.finfo(np.float32).max:
        raise OutOfRange(
            f"layer {layer.name!r} holds values so far apart that no float32 scale reaches them, which uint8 "
            "needs: ask for dtype=native",
            layer=layer.name,
        )
    # A constant zero channel has any scale; one reads best.
    scale = np.where(high > low, step, 1.0).astype(np.float32)
    # Rounded up, so that 255 steps still reach from the lowest to the highest value.
    scale = np.where(scale < step, np.nextafter(scale, np.float32(np.inf)), scale).astype(np.float32)
    zero_point = np.clip(np.rint(-low / scale), 0, LEVELS)
    levels = np.clip(np.rint(exact / scale) + zero_point, 0, LEVELS)
    return levels.astype(np.uint8), scale, zero_point.astype(np.uint8)


def error_bound(dtype: str, choice: DtypeChoice) -> dict[str, float] | None:
    """How far a value may lie from the network's; None where the cast is exact.

    `|error| <= max(relative * |x|, absolute)`: half a unit in the last place (IEEE 754). For uint8
    it is one `scale`, which travels beside the values.
    """
    if choice == "native" or np.can_cast(dtype, choice, "safe"):
        return None
    if choice == "uint8":
        return {"scales": 1.0}
    kind = np.finfo(choice)
    return {"relative": float(kind.eps) / 2, "absolute": float(kind.smallest_subnormal) / 2}


def _overflowed(values: Array, narrowed: Array) -> bool:
    # numpy has no quick isinf for half floats: an infinite one has all bits of its exponent set alone.
    half = narrowed.dtype == np.float16
    infinite = (narrowed.view(np.uint16) & 0x7FFF) == 0x7C00 if half else np.isinf(narrowed)
    return bool(infinite.any()) and bool((infinite & np.isfinite(values)).any())
