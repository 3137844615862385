"""What people debug with: numbers that describe a map without sending it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.values import Array, FeatureMap


def describe(feature_map: FeatureMap) -> Mapping[str, Any]:
    """Minimum, maximum, mean and standard deviation over finite values, and what is not finite.

    All images of the request count together. `sparsity` is the share of zeros; `dead_channels` are
    zero everywhere; `channel_means` are over finite values, None where a channel has none. Where no
    value is finite, or the layer has no values, the numbers are None.
    """
    layer, values = feature_map.layer, feature_map.values
    finite = values[np.isfinite(values)].astype(np.float64)
    some = finite.size > 0
    channels = None
    if layer.channel_axis is not None:
        channels = np.moveaxis(values, layer.channel_axis, 0).reshape(values.shape[layer.channel_axis], -1)
    return {
        "name": layer.name,
        "shape": values.shape,
        "dtype": values.dtype.name,
        "min": float(finite.min()) if some else None,
        "max": float(finite.max()) if some else None,
        "mean": float(finite.mean()) if some else None,
        "std": float(finite.std()) if some else None,
        "non_finite": int(values.size - finite.size),
        "sparsity": float(np.count_nonzero(values == 0) / values.size) if values.size else None,
        "dead_channels": None if channels is None else np.flatnonzero(~channels.any(axis=1)).tolist(),
        "channel_means": None if channels is None else [_mean(channel) for channel in channels],
    }


def _mean(channel: Array) -> float | None:
    finite = channel[np.isfinite(channel)]
    return float(finite.mean(dtype=np.float64)) if finite.size else None
