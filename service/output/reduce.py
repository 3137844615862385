"""Array to array: what is done to a feature map between the network and the encoder."""

import numpy as np

from service.errors import InvalidParameter, OutOfRange
from service.values import Array, DtypeChoice, FeatureMap


def cast(feature_map: FeatureMap, dtype: DtypeChoice) -> FeatureMap:
    """The map's values as `dtype`, rounded to nearest; infinity and NaN stay what they are.

    The error is within `error_bound`.

    Raises:
        OutOfRange: a finite value would become infinite.
        InvalidParameter: the layer holds text.
    """
    values = feature_map.values
    if not is_numeric(feature_map.layer.dtype):
        raise InvalidParameter(
            f"layer {feature_map.layer.name!r} holds {feature_map.layer.dtype}, not numbers",
            parameter="layers",
        )
    if dtype == "native" or values.dtype == dtype:
        return feature_map
    with np.errstate(over="ignore"):
        narrowed = values.astype(dtype)
    if _overflowed(values, narrowed):
        raise OutOfRange(
            f"layer {feature_map.layer.name!r} holds values up to {_largest(values):.6g}, beyond "
            f"{np.finfo(dtype).max:g}, the largest {dtype}: ask for a wider dtype",
            layer=feature_map.layer.name,
        )
    return FeatureMap(feature_map.layer, narrowed)


def is_numeric(dtype: str) -> bool:
    """Whether numpy itself has the dtype: text and bfloat16 are not numbers that the formats carry."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def itemsize(dtype: str, choice: DtypeChoice) -> int:
    """Bytes of one value of a layer of `dtype` in the answer."""
    return np.dtype(dtype if choice == "native" else choice).itemsize


def error_bound(dtype: str, choice: DtypeChoice) -> dict[str, float] | None:
    """How far a value may lie from the network's; None where the cast is exact.

    `|error| <= max(relative * |x|, absolute)`: half a unit in the last place (IEEE 754).
    """
    if choice == "native" or np.can_cast(dtype, choice, "safe"):
        return None
    kind = np.finfo(choice)
    return {"relative": float(kind.eps) / 2, "absolute": float(kind.smallest_subnormal) / 2}


def _overflowed(values: Array, narrowed: Array) -> bool:
    infinite = np.isinf(narrowed)
    return bool(infinite.any()) and bool((infinite & np.isfinite(values)).any())


def _largest(values: Array) -> float:
    return float(np.abs(values[np.isfinite(values)]).max())
