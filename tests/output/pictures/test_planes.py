"""Channels made one plane, or three colours: against formulas written again in numpy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.errors import NotDrawable
from service.output.pictures import draw
from service.parameters import Drawing
from tests.output.pictures.maps import colors, feature_map, floats, indices, opened

COMBINED = {
    "mean": lambda a: a.mean(0),
    "max": lambda a: a.max(0),
    "norm": lambda a: np.linalg.norm(a, axis=0),
}
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
# Of one level in 254, or 255: sums are rounded in another order than in the oracle.
LEVEL = 1
# Neighbouring singular values turn into each other when they are closer than this.
APART = 1e-3


def random_map(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(0.5, 3, (shape[0], 1, 1))).astype(np.float32)


def svd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred samples (cells, C) and the whole thin SVD's singular values and right vectors."""
    samples = values.reshape(len(values), -1).T.astype(np.float64)
    samples = samples - samples.mean(0)
    _, singular, right = np.linalg.svd(samples, full_matrices=False)
    return samples, singular, right


def well_apart(singular: np.ndarray, count: int) -> bool:
    known = singular[: count + 1]
    return known[0] > 1e-3 and bool((np.diff(known) < -APART * known[0]).all())


def unsigned_levels(plane: np.ndarray) -> np.ndarray:
    return np.rint(254 * plane / (plane.max() or 1))


def signed_levels(plane: np.ndarray) -> np.ndarray:
    return np.rint(254 * (plane / np.abs(plane).max() + 1) / 2)


@pytest.mark.parametrize("how", COMBINED)
def test_a_heat_map_combines_the_channels(how: str) -> None:
    values = random_map((6, 5, 4), 0)
    plane = COMBINED[how](values.astype(np.float64))
    expected = signed_levels(plane) if plane.min() < 0 else unsigned_levels(plane)
    drawn = indices(values, style="heatmap", combine=how, after_activation=False)
    assert np.abs(drawn - expected).max() <= LEVEL


def test_a_cell_that_is_nan_in_one_channel_has_no_heat() -> None:
    values = floats([[1, np.nan]], [[1, 2]])
    for how in COMBINED:
        assert indices(values, style="heatmap", combine=how).tolist() == [[254, 255]]


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32))
def test_pca_is_that_of_the_full_svd(shape: tuple[int, int, int], seed: int) -> None:
    values = random_map(shape, seed)
    samples, singular, right = svd(values)
    count = min(3, (singular > 1e-5).sum())
    assume(len(singular) and (count == 0 or well_apart(singular[: count + 1], count)))
    # Where two loadings are equally large, rounding decides on the sign.
    largest = np.sort(np.abs(right[:count]), axis=1)
    assume(shape[0] == 1 or count == 0 or (largest[:, -1] - largest[:, -2] > APART).all())
    scores = np.zeros((len(samples), 3))
    for k in range(count):
        loading = right[k] * np.sign(right[k][np.abs(right[k]).argmax()])
        projected = samples @ loading
        scores[:, k] = projected / projected.std(ddof=1)
    expected = np.rint(255 / (1 + np.exp(-2 * scores))).reshape(*shape[1:], 3)
    drawn = colors(values, style="pca").astype(int)
    assert np.abs(drawn - expected).max() <= LEVEL


@settings(deadline=None)
@given(SHAPES, st.integers(0, 2**32))
def test_eigencam_is_that_of_the_full_svd(shape: tuple[int, int, int], seed: int) -> None:
    values = random_map(shape, seed)
    samples, singular, right = svd(values)
    assume(well_apart(singular, 1))
    plane = (samples @ right[0]).reshape(shape[1:])
    low, high = -plane.min(), plane.max()
    assume(abs(low - high) > APART * max(low, high))
    expected = unsigned_levels(np.maximum(plane if high > low else -plane, 0))
    assert np.abs(indices(values, style="eigencam") - expected).max() <= LEVEL


def test_one_svd_serves_many_channels_and_many_cells() -> None:
    """Both of the eigenproblems, in sizes where one is far smaller than the other."""
    for shape in ((300, 3, 3), (4, 30, 30)):
        values = random_map(shape, 5)
        samples, _, right = svd(values)
        plane = (samples @ right[0]).reshape(shape[1:])
        plane = np.maximum(plane if plane.max() > -plane.min() else -plane, 0)
        assert np.abs(indices(values, style="eigencam") - unsigned_levels(plane)).max() <= LEVEL


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30])
def test_a_constant_map_has_no_components(value: float) -> None:
    values = np.full((5, 7, 3), value, np.float32)
    assert (colors(values, style="pca") == 128).all()
    assert (indices(values, style="eigencam") == 0).all()


def test_components_do_not_depend_on_the_unit() -> None:
    values = random_map((4, 5, 6), 3)
    for factor in (1e-30, 1e30):
        scaled = values * np.float32(factor)
        assert np.abs(colors(scaled, style="pca").astype(int) - colors(values, style="pca")).max() <= LEVEL


def test_a_missing_component_is_neutral() -> None:
    picture = colors(floats([[1, 2, 5]]), style="pca")
    assert (picture[..., 0] != 128).any()
    assert (picture[..., 1:] == 128).all()


def test_a_class_activation_map_is_the_weighted_sum_with_zero_black() -> None:
    values, weights = random_map((6, 4, 4), 1), np.random.default_rng(4).normal(size=6)
    plane = np.maximum((weights[:, None, None] * values).sum(0), 0)
    drawn = draw_cam(values, weights)
    assert np.abs(drawn - unsigned_levels(plane)).max() <= LEVEL


def test_a_fixed_scale_shows_evidence_against_the_class() -> None:
    drawn = draw_cam(floats([[1, -1, 0]]), np.ones(1), normalize="fixed", vmin=-1.0, vmax=1.0)
    assert drawn.tolist() == [[254, 0, 127]]


@pytest.mark.parametrize("weights", [None, np.ones(3), np.ones((2, 1)), np.array([1, np.nan])])
def test_weights_that_do_not_fit_are_refused(weights: np.ndarray | None) -> None:
    with pytest.raises(NotDrawable):
        draw(feature_map(floats([[1]], [[2]])), Drawing(style="cam"), class_weights=weights)


def draw_cam(values: np.ndarray, weights: np.ndarray, **parameters: Any) -> np.ndarray:
    drawing = Drawing(style="cam", scale=1, **parameters)
    return np.asarray(opened(draw(feature_map(values), drawing, class_weights=weights).body))
