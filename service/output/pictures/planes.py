"""A feature map as channels over space, and channels combined into one plane."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from service.errors import NotDrawable
from service.output.pictures.scales import Floats
from service.output.reduce import is_numeric
from service.parameters import Combine
from service.values import Array, FeatureMap, Layer

# Which axes are channels, rows and columns.
_AXES: dict[str, tuple[int, ...]] = {"NCHW": (1, 2, 3), "NHWC": (3, 1, 2), "NC": (1,)}


def extent(layer: Layer) -> tuple[int | None, ...]:
    """Channels, rows and columns of one image, None where unknown; channels alone for a vector.

    Raises:
        NotDrawable: text, an unknown layout, a rank that the layout does not have, no cells.
    """
    if not is_numeric(layer.dtype):
        raise NotDrawable(f"layer {layer.name!r} holds {layer.dtype or 'no tensor'}, not numbers")
    if layer.layout is None:
        raise NotDrawable(
            f"it is not known which axes of layer {layer.name!r} are channels and space "
            f"(shape {layer.shape}): only maps laid out as NCHW, NHWC or NC are drawn"
        )
    axes = _AXES[layer.layout]
    if layer.shape is None:
        return (layer.channels, *(None for _ in axes[1:]))
    if len(layer.shape) != len(axes) + 1:
        raise NotDrawable(f"layer {layer.name!r} has {len(layer.shape)} axes and not {len(axes) + 1}")
    if 0 in layer.shape:
        raise NotDrawable(f"layer {layer.name!r} is empty: its shape is {layer.shape}")
    return tuple(layer.shape[axis] for axis in axes)


def channels_of(feature_map: FeatureMap) -> npt.NDArray[np.float32]:
    """The map as (C, H, W) float32, a vector as (C, 1, 1); a view where the dtype allows it.

    float64 beyond float32 becomes infinite, as everything is drawn in float32.

    Raises:
        NotDrawable: more than one image.
    """
    values, layer = feature_map.values, feature_map.layer
    if values.shape[0] != 1:
        raise NotDrawable(
            f"one image is drawn at a time, and layer {layer.name!r} holds {values.shape[0]}",
            limit=1,
            actual=values.shape[0],
        )
    with np.errstate(over="ignore"):
        numbers: npt.NDArray[np.float32] = values[0].astype(np.float32, copy=False)
    if layer.layout == "NC":
        return numbers[:, None, None]
    return np.moveaxis(numbers, -1, 0) if layer.layout == "NHWC" else numbers


def combine(channels: Floats, how: Combine) -> Floats:
    """One plane (1, H, W) of channels (C, H, W); a cell with NaN in any channel is NaN."""
    with np.errstate(invalid="ignore"):
        return _COMBINE[how](channels)[None]


def weigh(channels: Floats, weights: Array) -> Floats:
    """A class activation map (1, H, W): `sum_c weights_c A_c` (https://arxiv.org/abs/1512.04150).

    Raises:
        NotDrawable: not one finite weight for each channel.
    """
    if weights.shape != (len(channels),):
        raise NotDrawable(
            f"a class activation map takes one weight for each of {len(channels)} channels, "
            f"and the class has weights of shape {weights.shape}",
            limit=len(channels),
            actual=int(weights.size),
        )
    if not np.isfinite(weights).all():
        raise NotDrawable("the class's weights hold NaN or infinity")
    with np.errstate(invalid="ignore", over="ignore"):
        plane: Floats = np.einsum("c,chw->hw", weights.astype(np.float64), channels)
    return plane[None]


def _norm(channels: Floats) -> Floats:
    squares: Floats = np.einsum("chw,chw->hw", channels, channels, dtype=np.float64)
    return np.sqrt(squares)


def _mean(channels: Floats) -> Floats:
    return np.asarray(channels.mean(axis=0, dtype=np.float64))


def _max(channels: Floats) -> Floats:
    return np.asarray(channels.max(axis=0))


_COMBINE: dict[Combine, Callable[[Floats], Floats]] = {"mean": _mean, "max": _max, "norm": _norm}
