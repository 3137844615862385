"""Statistics, held against numpy on the whole map at once; and what they hold while they work."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.output.statistics import PIECE, describe
from service.values import FeatureMap, Layout
from tests.output.test_reduce import layer

AXES = {"NCHW": 1, "NHWC": 3, None: None}
BOUNDS: dict[str, dict[str, Any]] = {
    "float64": {"min_value": -1e100, "max_value": 1e100},
    "int64": {"min_value": -(2**50), "max_value": 2**50},
}
MAPS = st.sampled_from(["float32", "float16", "float64", "int8", "uint8", "int64", "bool"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=6),
        elements=hnp.from_dtype(np.dtype(dtype), **BOUNDS.get(dtype, {})),
    )
)
# Sums in another order than numpy's own, in float64; of the largest value in the map.
ROUNDING = 1e-12


def told(values: np.ndarray, layout: Layout | None = "NCHW") -> dict[str, Any]:
    return dict(describe(FeatureMap(layer(values.shape, layout, values.dtype.name), values)))


def rows(values: np.ndarray, layout: Layout | None) -> list[np.ndarray] | None:
    """The channels, if there are any."""
    axis = AXES[layout]
    return None if axis is None else [row.ravel() for row in np.moveaxis(values, axis, 0)]


def finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)].astype(np.float64)


def assert_near(found: list[float | None], expected: list[float | None], values: np.ndarray) -> None:
    largest = np.abs(finite(values)).max(initial=0.0)
    assert [number is None for number in found] == [number is None for number in expected]
    for number, exact in zip(found, expected, strict=True):
        assert number is None or exact is None or abs(number - exact) <= ROUNDING * largest


def assert_described(values: np.ndarray, layout: Layout | None) -> None:
    found, whole, channels = told(values, layout), finite(values), rows(values, layout)
    assert (found["min"], found["max"]) == ((whole.min(), whole.max()) if whole.size else (None, None))
    assert found["non_finite"] == values.size - whole.size
    assert found["sparsity"] == ((values == 0).mean() if values.size else None)
    assert_near(
        [found["mean"], found["std"]], [whole.mean(), whole.std()] if whole.size else [None] * 2, values
    )
    if channels is None:
        assert (found["dead_channels"], found["channel_means"]) == (None, None)
    else:
        assert found["dead_channels"] == [i for i, row in enumerate(channels) if row.size and not row.any()]
        means = [finite(row).mean() if finite(row).size else None for row in channels]
        assert_near(found["channel_means"], means, values)


@given(MAPS, st.sampled_from(list(AXES)))
def test_numpy_on_the_whole_map_agrees(values: np.ndarray, layout: Layout | None) -> None:
    assert_described(values, layout)


@pytest.mark.parametrize("layout", AXES)
@pytest.mark.parametrize("shape", [(3, 2, 300, 401), (2, 301, 400, 3), (2, 700, 20, 20)])
def test_maps_that_are_read_in_pieces_are_described_as_numpy_does(
    shape: tuple[int, ...], layout: Layout | None
) -> None:
    values = np.random.default_rng(0).normal(1, 2, shape).astype(np.float32)
    values[0, 0, 1], values[0, 1, 1], values[1, 1, 0] = np.nan, -np.inf, 0
    assert values.size > PIECE
    assert_described(values, layout)


@pytest.mark.parametrize("layout", AXES)
@pytest.mark.parametrize("shape", [(2, 64, 256, 256), (4, 1, 1024, 2048), (2048, 16, 16, 16)])
def test_a_large_map_is_described_in_little_memory(shape: tuple[int, ...], layout: Layout | None) -> None:
    values = np.ones(shape, np.float32)
    tracemalloc.start()
    try:
        told(values, layout)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
