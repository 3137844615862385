"""Principal components of a map's cells, by the smaller of two eigenproblems; the same every time.

A full SVD of 64 channels of 112 x 112 cells takes seconds; the eigenproblem of the 64 x 64 products
of channels gives the same components.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.output.pictures.scales import Floats

Doubles = npt.NDArray[np.float64]
# Channels x cells x the smaller of both: what the products cost: a second or two on one core at the limit.
MAX_WORK = 2**34
# The eigenproblem alone grows with the cube of the smaller of both.
MAX_SIDE = 1536
# Below this part of the first variance there is only rounding of float32 data, and below this
# variance for each value, the largest value being 1, only that of the centring in float64.
_RELATIVE_NOISE = 1e-12
_ABSOLUTE_NOISE = 1e-24


@dataclass(frozen=True, eq=False)
class _Components:
    """`scores` (cells, k) of the first k components, and their singular values (k,)."""

    scores: Doubles
    singular: Doubles


def color_by_components(channels: Floats) -> npt.NDArray[np.uint8]:
    """The first three components as red, green and blue: (H, W, 3) uint8 of (C, H, W).

    Scores are whitened and squashed, `rint(255 sigmoid(2 p))`, as in DINOv3's notebook on PCA of
    patch features (https://github.com/facebookresearch/dinov3). A component that does not exist
    stays at 128. NaN counts as zero, an infinity as the largest or smallest finite value.
    """
    cells = channels.shape[1] * channels.shape[2]
    found = _components(channels, 3)
    scores = np.zeros((cells, 3))
    scores[:, : len(found.singular)] = found.scores / found.singular * np.sqrt(max(cells - 1, 1))
    squashed = 1 / (1 + np.exp(-2 * scores))
    colors: npt.NDArray[np.uint8] = np.rint(squashed * 255).astype(np.uint8)
    return colors.reshape(channels.shape[1], channels.shape[2], 3)


def eigencam(channels: Floats) -> Doubles:
    """The cells' first principal component, its weaker side cut off: (1, H, W), at least 0.

    EigenCAM (https://arxiv.org/abs/2008.00299), the channels' means taken off first as in
    pytorch-grad-cam's `svd_on_activations`; the sign is such that the largest |score| is positive.
    """
    scores = _components(channels, 1).scores
    plane = scores[:, 0] if scores.size else np.zeros(channels[0].size)
    if -plane.min() > plane.max():
        plane = -plane
    return np.maximum(plane, 0.0).reshape(1, *channels.shape[1:])


def _components(channels: Floats, count: int) -> _Components:
    """Up to `count` components, each with its largest |loading| positive (sklearn's `svd_flip`)."""
    samples, largest = _prepare(channels)
    wide = samples.shape[0] > samples.shape[1]
    variances, vectors = np.linalg.eigh(samples.T @ samples if wide else samples @ samples.T)
    variances, vectors = variances[: -count - 1 : -1], vectors[:, : -count - 1 : -1]
    noise = max(variances[0] * _RELATIVE_NOISE, samples.size * _ABSOLUTE_NOISE)
    kept = variances > noise
    singular = np.sqrt(variances[kept])
    loadings = samples @ vectors[:, kept] / singular if wide else vectors[:, kept]
    peaks = np.abs(loadings).argmax(axis=0)
    loadings = loadings * np.sign(loadings[peaks, np.arange(len(singular))])
    return _Components(samples.T @ loadings * largest, singular * largest)


def _prepare(channels: Floats) -> tuple[Doubles, float]:
    """(C, cells) float64 with every channel's mean at 0, over the largest |value|, which comes too."""
    samples = channels.reshape(len(channels), -1).astype(np.float64)
    finite = np.isfinite(samples)
    if not finite.all():
        known = (samples.max(where=finite, initial=-np.inf), samples.min(where=finite, initial=np.inf))
        high, low = known if finite.any() else (0.0, 0.0)
        np.nan_to_num(samples, copy=False, nan=0.0, posinf=high, neginf=low)
    largest = float(max(samples.max(), -samples.min())) or 1.0
    samples /= largest
    samples -= samples.mean(axis=1, keepdims=True)
    return samples, largest
