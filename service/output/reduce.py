"""Array to array: channels, region, pool or grid, cast, in this order, which is part of the contract."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.errors import InvalidParameter, NotCombinable
from service.output.quantise import cast, quantise
from service.parameters import NO_REDUCTION, Reduction
from service.syntax import Channels
from service.values import Array, FeatureMap, Layer, Window

# Generalised mean pooling: p = 3 and this floor as in Radenović et al. 2018, arXiv 1711.02512.
GEM_POWER, GEM_FLOOR = 3, 1e-6
FLOAT64_BYTES = 8
# What `quantise` holds at one time.
QUANTISING_COPIES = 3


def check(layer: Layer, reduction: Reduction) -> None:
    """Refuse, before anything runs, what cannot be done to a layer.

    Raises:
        InvalidParameter: the layer holds no numbers, or has no such channel.
        NotCombinable: grid together with pool, or a layer without what a reduction needs: channels,
            rows and columns, any cells at all.
    """
    check_numbers(layer)
    if reduction.grid and reduction.pool != "none":
        raise NotCombinable("grid and pool are two ways to do the same: ask for one of them")
    if (reduction.grid or reduction.region) and not layer.has_space:
        raise NotCombinable(
            f"layer {layer.name!r} has no rows and columns, so grid and region are not for it",
            layer=layer.name,
        )
    if reduction.channels:
        _check_channels(layer, reduction.channels)
    if layer.has_space and layer.shape is not None:
        _check_cells(layer, reduction, layer.shape)


def check_numbers(layer: Layer) -> None:
    """Refuse text and types that numpy does not have.

    Raises:
        InvalidParameter
    """
    if not is_numeric(layer.dtype):
        held = layer.dtype or "a type that is unknown here"
        raise InvalidParameter(
            f"layer {layer.name!r} holds {held}, not numbers that a format carries", parameter="layers"
        )


def apply(
    feature_map: FeatureMap, reduction: Reduction, windows: Sequence[Window | None]
) -> dict[str, Array]:
    """The map after every step, under the layer's name, with the arrays that belong beside it.

    `windows` holds one an image, or one for all. Beside it stand `<layer>#channels` (N, k) int64
    for `top`, and `<layer>#scale` float32 and `<layer>#zero_point` uint8 for uint8, of the map's
    rank with length one where they broadcast.

    Raises:
        OutOfRange: the dtype cannot carry a value.
        NotCombinable: a layer whose shape was not known before it ran has no cells.
    """
    layer, values = feature_map.layer, feature_map.values
    left, arrays = _left(reduction, feature_map.done), dict[str, Array]()
    if left.channels:
        values, chosen = _select(layer, values, left.channels)
        if chosen is not None:
            arrays[f"{layer.name}#channels"] = chosen
    if left.region:
        values = _cut(layer, values, windows)
    if layer.has_space:
        _check_cells(layer, left, values.shape)
        values = _pooled(values, left, layer.spatial_axes)
    pooled = layer.has_space and reduction.pool != "none"
    if reduction.dtype != "uint8":
        return {layer.name: cast(layer, values, reduction.dtype), **arrays}
    axes = _shared_axes(layer, values.ndim, pooled)
    levels, scale, zero_point = quantise(layer, values, axes)
    beside: dict[str, Array] = {f"{layer.name}#scale": scale, f"{layer.name}#zero_point": zero_point}
    return {layer.name: levels, **arrays, **beside}


def cut_channels_and_region(
    feature_map: FeatureMap, reduction: Reduction, windows: Sequence[Window | None]
) -> FeatureMap:
    """The first two steps only, for who draws what is left."""
    values, left = feature_map.values, _left(reduction, feature_map.done)
    if left.channels:
        values, _ = _select(feature_map.layer, values, left.channels)
    if left.region:
        values = _cut(feature_map.layer, values, windows)
    return FeatureMap(feature_map.layer, values)


def _left(reduction: Reduction, done: Reduction) -> Reduction:
    """What of a reduction is still to be done."""
    if done is NO_REDUCTION:
        return reduction
    channels = None if done.channels else reduction.channels
    return replace(reduction, channels=channels, pool="none" if done.pool != "none" else reduction.pool)


def answer_bytes(layer: Layer, reduction: Reduction, images: int, window: Window | None) -> int:
    """Bytes of what `apply` gives for `images`; 0 where the shape is known only when it runs."""
    elements = answer_elements(layer, reduction, images, window)
    if not elements:
        return 0
    return elements * answer_dtype(layer, reduction).itemsize + _beside_bytes(layer, reduction, images)


def working_bytes(layer: Layer, reduction: Reduction, images: int, window: Window | None) -> int:
    """Bytes that `apply` holds at most beside map and answer, as it ranks, averages and quantises in float64.

    The steps follow each other, so the largest counts. 0 where a shape is known only when it runs.
    """
    if layer.shape is None:
        return 0
    steps = [0]
    if reduction.channels and reduction.channels.top:
        # One image at a time, in the order of the channels, which is a copy of channels-last maps.
        each = FLOAT64_BYTES + np.dtype(layer.dtype).itemsize
        steps.append(answer_elements(layer, NO_REDUCTION, 1, None) * each)
    if layer.has_space and reduction.pool == "gem":
        one = answer_elements(layer, replace(reduction, pool="none"), 1, window)
        steps.append(one * FLOAT64_BYTES)
    if reduction.grid:
        steps.append(_gridding_bytes(layer, reduction, reduction.grid, images, window))
    if reduction.dtype == "uint8":
        elements = answer_elements(layer, reduction, images, window)
        steps.append(elements * FLOAT64_BYTES * QUANTISING_COPIES)
    return max(steps)


def _gridding_bytes(
    layer: Layer, reduction: Reduction, grid: tuple[int, int], images: int, window: Window | None
) -> int:
    """Each axis' means apart and joined: first the grid's rows with all columns, then the grid."""
    assert layer.shape is not None
    columns = window.width if window else layer.shape[layer.spatial_axes[1]] or 0
    between = answer_elements(layer, replace(reduction, grid=None), images, Window(0, 0, grid[0], columns))
    after = answer_elements(layer, reduction, images, window)
    return FLOAT64_BYTES * max(2 * between, between + 2 * after)


def answer_elements(layer: Layer, reduction: Reduction, images: int, window: Window | None) -> int:
    """How many values `apply` gives under the layer's own name; 0 where that is known only when it runs."""
    if layer.shape is None or None in layer.shape:
        return 0
    shape = [size or 0 for size in layer.shape]
    if layer.batch_axis is not None:
        shape[layer.batch_axis] *= images
    if reduction.channels and layer.channel_axis is not None:
        shape[layer.channel_axis] = _chosen(reduction.channels)
    if layer.has_space:
        rows, columns = layer.spatial_axes
        if window:
            shape[rows], shape[columns] = window.height, window.width
        if reduction.grid:
            shape[rows], shape[columns] = reduction.grid
        if reduction.pool != "none":
            shape[rows] = shape[columns] = 1
    return math.prod(shape)


def answer_dtype(layer: Layer, reduction: Reduction) -> np.dtype[np.generic]:
    """The dtype of the values that `apply` gives."""
    if reduction.dtype != "native":
        return np.dtype(reduction.dtype)
    averages = layer.has_space and (reduction.grid is not None or reduction.pool in ("avg", "gem"))
    return _averaged(np.dtype(layer.dtype)) if averages else np.dtype(layer.dtype)


def _chosen(channels: Channels) -> int:
    return channels.top or len(channels.indices)


def _beside_bytes(layer: Layer, reduction: Reduction, images: int) -> int:
    """Bytes of `#channels` (int64), `#scale` (float32) and `#zero_point` (uint8)."""
    chosen = reduction.channels
    total = 8 * chosen.top * images if chosen and chosen.top else 0
    if reduction.dtype == "uint8":
        scales = 1
        if layer.has_space and reduction.pool == "none":
            scales = _chosen(chosen) if chosen else layer.channels or 1
        total += 5 * scales * (images if layer.batch_axis is not None else 1)
    return total


def is_numeric(dtype: str) -> bool:
    """Whether numpy itself has the dtype: text and bfloat16 are no numbers that the formats carry."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _averaged(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """A mean of whole numbers is no whole number."""
    return dtype if dtype.kind == "f" else np.dtype(np.float32)


def _check_cells(layer: Layer, reduction: Reduction, shape: Sequence[int | None]) -> None:
    top = reduction.channels is not None and reduction.channels.top
    looks = reduction.pool != "none" or reduction.grid or top
    if looks and 0 in [shape[axis] for axis in layer.spatial_axes]:
        raise NotCombinable(
            f"layer {layer.name!r} has no cells at this size of the input, so there is nothing to pool or "
            "to rank by",
            layer=layer.name,
        )


def _check_channels(layer: Layer, channels: Channels) -> None:
    if layer.channel_axis is None or layer.channels is None:
        raise NotCombinable(
            f"the channels of layer {layer.name!r} are not known, so none can be chosen", layer=layer.name
        )
    if channels.top and layer.batch_axis != 0:
        raise NotCombinable(
            f"channels=top ranks the channels of each image, and the axis of the images is not known of "
            f"layer {layer.name!r}: choose channels by their numbers",
            layer=layer.name,
        )
    most = channels.top or max(channels.indices) + 1
    if most > layer.channels:
        raise InvalidParameter(
            f"layer {layer.name!r} has {layer.channels} channels, 0..{layer.channels - 1}",
            parameter="channels",
            limit=layer.channels,
            actual=most,
        )


def _select(layer: Layer, values: Array, channels: Channels) -> tuple[Array, Array | None]:
    """The chosen channels; for `top` also their indices (N, k), most active first, ties in order."""
    axis = layer.channel_axis
    assert axis is not None
    if channels.top is None:
        return np.take(values, channels.indices, axis=axis), None
    moved = np.moveaxis(values, axis, 1)
    activity = np.empty(moved.shape[:2])
    for image, mean in zip(moved, activity, strict=True):
        rows = image.reshape(len(mean), math.prod(image.shape[1:]))
        mean[:] = np.abs(rows, dtype=np.float64).mean(axis=1)
    # What is not a number ranks last.
    np.nan_to_num(activity, copy=False, nan=-1.0, posinf=np.inf)
    order = np.argsort(-activity, axis=1, kind="stable")[:, : channels.top].astype(np.int64)
    index = np.expand_dims(order, tuple(a for a in range(1, values.ndim) if a != axis))
    return np.take_along_axis(values, index, axis=axis), order


def _cut(layer: Layer, values: Array, windows: Sequence[Window | None]) -> Array:
    """Each image's window, one after another along the batch axis."""
    rows, columns = layer.spatial_axes
    parts = []
    for image, window in zip(values, windows if len(windows) > 1 else [*windows] * len(values), strict=True):
        assert window is not None
        index = [slice(None)] * image.ndim
        index[rows - 1] = slice(window.y, window.y + window.height)
        index[columns - 1] = slice(window.x, window.x + window.width)
        parts.append(image[tuple(index)])
    return np.stack(parts)


def _pooled(values: Array, reduction: Reduction, axes: tuple[int, int]) -> Array:
    if reduction.grid:
        return _gridded(values, reduction.grid, axes)
    pooled: Array = POOLS[reduction.pool](values, axes)
    return pooled


def _average(values: Array, axes: tuple[int, int]) -> Array:
    result: Array = values.mean(axis=axes, dtype=np.float64).astype(_averaged(values.dtype))
    return result


def _maximum(values: Array, axes: tuple[int, int]) -> Array:
    result: Array = values.max(axis=axes)
    return result


def _generalised_mean(values: Array, axes: tuple[int, int]) -> Array:
    """One image at a time: the powers of all would take twice the room of the map."""
    rows, columns = axes
    kept = [size for axis, size in enumerate(values.shape) if axis not in axes]
    result, powered = np.empty(kept, _averaged(values.dtype)), np.empty(values.shape[1:])
    for image, mean in zip(values, result, strict=True):
        np.maximum(image, GEM_FLOOR, out=powered, dtype=np.float64)
        powered **= GEM_POWER
        mean[:] = powered.mean(axis=(rows - 1, columns - 1)) ** (1 / GEM_POWER)
    return result


POOLS = {
    "none": lambda values, axes: values,
    "avg": _average,
    "max": _maximum,
    "gem": _generalised_mean,
}


def _gridded(values: Array, grid: tuple[int, int], axes: tuple[int, int]) -> Array:
    """Adaptive average: cell i covers rows floor(i*H/h) to ceil((i+1)*H/h) - 1, as in PyTorch."""
    result = values
    for axis, cells in zip(axes, grid, strict=True):
        length = values.shape[axis]
        spans = [slice(i * length // cells, -((i + 1) * length // -cells)) for i in range(cells)]
        lines = np.moveaxis(result, axis, 0)
        result = np.stack([lines[span].mean(axis=0, dtype=np.float64) for span in spans], axis=axis)
    rounded: Array = result.astype(_averaged(values.dtype))
    return rounded


def _shared_axes(layer: Layer, ndim: int, pooled: bool) -> tuple[int, ...]:
    """All axes but those of batch and channel; a vector has one scale, not one a value."""
    channel = layer.channel_axis if layer.has_space and not pooled else None
    return tuple(axis for axis in range(ndim) if axis not in (layer.batch_axis, channel))
