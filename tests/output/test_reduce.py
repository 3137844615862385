"""Casting, held against numpy and IEEE 754."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import OutOfRange
from service.output.reduce import cast, error_bound
from service.values import FeatureMap
from tests.engine.test_selection import layer

FLOATS = hnp.arrays("float32", 20, elements=st.floats(-65000, 65000, width=32))


def as_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    return cast(FeatureMap(layer("a", 0), values), dtype).values


@given(FLOATS)
def test_float16_lies_within_the_stated_bound(values: np.ndarray) -> None:
    bound = error_bound("float32", "float16")
    assert bound is not None
    error = np.abs(as_dtype(values, "float16").astype(np.float64) - values.astype(np.float64))
    assert (error <= np.maximum(bound["relative"] * np.abs(values), bound["absolute"])).all()


def test_the_bound_of_float16_is_half_a_unit_in_the_last_place() -> None:
    assert error_bound("float32", "float16") == {"relative": 2**-11, "absolute": 2**-25}


@pytest.mark.parametrize(
    ("dtype", "choice"), [("float32", "native"), ("float16", "float32"), ("uint8", "float16")]
)
def test_an_exact_cast_has_no_bound(dtype: str, choice: str) -> None:
    assert error_bound(dtype, choice) is None


def test_native_is_the_very_array() -> None:
    values = np.arange(4, dtype=np.float32)
    assert as_dtype(values, "native") is values


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_a_value_beyond_float16_is_refused_and_not_made_infinite(value: float) -> None:
    with pytest.raises(OutOfRange, match="wider"):
        as_dtype(np.array([0, value], np.float32), "float16")


def test_infinity_and_nan_stay_what_they_are() -> None:
    values = np.array([np.inf, -np.inf, np.nan], np.float32)
    assert np.array_equal(as_dtype(values, "float16"), values.astype(np.float16), equal_nan=True)
