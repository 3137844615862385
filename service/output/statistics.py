"""What people debug with: numbers that describe a map without sending it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from service.values import Array, FeatureMap

Numbers = npt.NDArray[np.float64]
# Values that are looked at in one go: 2 MiB as float64, whatever the map takes.
PIECE = 1 << 18


class _Moments(NamedTuple):
    """Of k sets of values, each (k,) float64; all but `zeros` and `size` over the finite ones.

    `squares` are the summed squares of the distances from the `mean`, which is 0 where nothing is
    finite, as the minimum is infinite and the maximum minus infinite there.
    """

    size: Numbers
    zeros: Numbers
    finite: Numbers
    low: Numbers
    high: Numbers
    mean: Numbers
    squares: Numbers

    def together(self) -> "_Moments":
        """Of the k sets as a single one (Chan, Golub and LeVeque 1983, doi 10.2307/2683386)."""
        count = self.finite.sum(keepdims=True)
        mean = (self.finite * self.mean).sum(keepdims=True) / np.maximum(count, 1)
        apart = (self.finite * (self.mean - mean) ** 2).sum(keepdims=True)
        return _Moments(
            self.size.sum(keepdims=True),
            self.zeros.sum(keepdims=True),
            count,
            self.low.min(keepdims=True, initial=np.inf),
            self.high.max(keepdims=True, initial=-np.inf),
            mean,
            self.squares.sum(keepdims=True) + apart,
        )


def describe(feature_map: FeatureMap) -> Mapping[str, Any]:
    """Minimum, maximum, mean and standard deviation over finite values, and what is not finite.

    All images of the request count together. `sparsity` is the share of zeros; `dead_channels` are
    zero everywhere, which one without values is not; `channel_means` are over finite values, None where
    a channel has none. Where no value is finite, or the layer has no values, the numbers are None. Sums
    are in float64, a few mebibytes of the map at a time.
    """
    layer, values = feature_map.layer, feature_map.values
    each = _by_row(np.moveaxis(np.atleast_1d(values), layer.channel_axis or 0, 0))
    every = each.together()
    some = every.finite.item() > 0
    has_channels = layer.channel_axis is not None
    return {
        "name": layer.name,
        "shape": values.shape,
        "dtype": values.dtype.name,
        "min": every.low.item() if some else None,
        "max": every.high.item() if some else None,
        "mean": every.mean.item() if some else None,
        "std": float(np.sqrt(every.squares / every.finite).item()) if some else None,
        "non_finite": values.size - int(every.finite.item()),
        "sparsity": every.zeros.item() / values.size if values.size else None,
        "dead_channels": _dead(each) if has_channels else None,
        "channel_means": _means(each) if has_channels else None,
    }


def _dead(channels: _Moments) -> list[int]:
    dead: list[int] = np.flatnonzero((channels.zeros == channels.size) & (channels.size > 0)).tolist()
    return dead


def _means(channels: _Moments) -> list[float | None]:
    known = channels.finite > 0
    return [mean if is_known else None for mean, is_known in zip(channels.mean.tolist(), known, strict=True)]


def _by_row(values: Array) -> _Moments:
    """Of each row along the first axis: many short ones at a time, a long one in pieces."""
    if not values.size:
        return _moments(np.zeros((len(values), 0)))
    length = values.size // len(values)
    if length > PIECE:
        return _joined(
            [_joined([_moments(piece[None]) for piece in _pieces(row)]).together() for row in values]
        )
    step = PIECE // length
    groups = (values[first : first + step] for first in range(0, len(values), step))
    return _joined([_moments(group.reshape(len(group), length)) for group in groups])


def _pieces(row: Array) -> Iterator[Array]:
    """The values one after another as they lie in memory, in a buffer that the next piece overwrites."""
    pieces: Any = np.nditer(row, flags=["external_loop", "buffered"], buffersize=PIECE)
    yield from pieces


def _joined(parts: Sequence[_Moments]) -> _Moments:
    return _Moments(*map(np.concatenate, zip(*parts, strict=True)))


def _moments(rows: Array) -> _Moments:
    """Of each row of (k, n)."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        exact = rows.astype(np.float64)
    finite = np.isfinite(exact)
    # Reductions over a part of the values take several times as long.
    looked_at = True if finite.all() else finite
    count = finite.sum(axis=1, dtype=np.float64)
    zeros = (exact == 0).sum(axis=1, dtype=np.float64)
    low = exact.min(axis=1, where=looked_at, initial=np.inf)
    high = exact.max(axis=1, where=looked_at, initial=-np.inf)
    mean = exact.sum(axis=1, where=looked_at) / np.maximum(count, 1)
    exact[~finite] = 0
    exact -= mean[:, None]
    exact *= exact
    squares = exact.sum(axis=1, where=looked_at)
    return _Moments(np.full_like(count, rows.shape[1]), zeros, count, low, high, mean, squares)
