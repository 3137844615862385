"""Bodies are written by `numpy.save` or by hand from the `.npy` specification (NEP 1)."""

import io
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import format as npy

from service.errors import MalformedRequest, RequestError, ShapeMismatch
from service.intake.preprocess import read_tensor
from service.values import TensorSpec

SPEC = TensorSpec("input", "float32", (None, 3, 4, 5), "NCHW")
VALUES = np.arange(60, dtype=np.float32).reshape(1, 3, 4, 5)


def saved(array: npt.NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, array, version=version)
    return file.getvalue()


def written(header: str, data: bytes = b"", magic: bytes = b"\x93NUMPY\1\0") -> bytes:
    """A header of any text, true or not."""
    return magic + struct.pack("<H", len(header) + 1) + header.encode() + b"\n" + data


def header(descr: str = "'<f4'", order: str = "False", shape: str = "(1, 3, 4, 5)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


# What is taken


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_saved_array_comes_back(version: tuple[int, int]) -> None:
    assert np.array_equal(read_tensor(saved(VALUES, version), SPEC).tensor, VALUES)


def test_the_batch_axis_may_be_left_out() -> None:
    assert np.array_equal(read_tensor(saved(VALUES[0]), SPEC).tensor, VALUES)


@pytest.mark.parametrize("batch", [None, 1])
def test_several_images_may_lie_along_a_batch_axis_that_is_dynamic_or_one(batch: int | None) -> None:
    spec = replace(SPEC, shape=(batch, 3, 4, 5))
    assert read_tensor(saved(np.repeat(VALUES, 7, 0)), spec).tensor.shape == (7, 3, 4, 5)


def test_an_input_of_unknown_rank_takes_any() -> None:
    assert read_tensor(saved(VALUES[0, 0]), replace(SPEC, shape=None)).tensor.shape == (4, 5)


def test_dynamic_axes_take_any_length() -> None:
    spec = replace(SPEC, shape=(None, 3, None, None))
    assert read_tensor(saved(np.zeros((1, 3, 9, 8), np.float32)), spec).tensor.shape == (1, 3, 9, 8)


@pytest.mark.parametrize(
    "array", [VALUES.astype(">f4"), np.asfortranarray(VALUES)], ids=["big-endian", "fortran"]
)
def test_other_orders_of_bytes_and_axes_are_converted(array: npt.NDArray[Any]) -> None:
    tensor = read_tensor(saved(array), SPEC).tensor
    assert np.array_equal(tensor, VALUES)
    assert (tensor.dtype.isnative, tensor.flags.c_contiguous) == (True, True)


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int8", "int64", "bool"])
def test_any_dtype_of_a_graph_is_taken(dtype: str) -> None:
    tensor = read_tensor(saved(VALUES.astype(dtype)), replace(SPEC, dtype=dtype)).tensor
    assert (tensor.dtype, tensor.sum()) == (np.dtype(dtype), VALUES.astype(dtype).sum())


def test_the_tensor_is_a_view_of_the_body() -> None:
    body = saved(VALUES)
    assert np.shares_memory(read_tensor(body, SPEC).tensor, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("padding", range(4))
def test_the_tensor_is_aligned_wherever_the_header_ends(padding: int) -> None:
    body = written(header() + " " * padding, VALUES.tobytes())
    tensor = read_tensor(body, SPEC).tensor
    assert (tensor.flags.aligned, np.array_equal(tensor, VALUES)) == (True, True)


def test_a_ready_tensor_has_no_placement() -> None:
    assert read_tensor(saved(VALUES), SPEC).placements == ()


# What does not fit the model


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "U3", "complex64"])
def test_another_dtype_is_refused_with_both(dtype: str) -> None:
    with pytest.raises(ShapeMismatch, match=r"has dtype .*takes float32") as refusal:
        read_tensor(saved(VALUES.astype(dtype)), SPEC)
    assert refusal.value.extensions == {"given": np.dtype(dtype).name, "allowed": "float32"}


@pytest.mark.parametrize("shape", [(1, 3, 4, 6), (1, 1, 4, 5), (4, 5), (1, 1, 3, 4, 5), (60,), ()])
def test_another_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(any, 3, 4, 5\)") as refusal:
        read_tensor(saved(np.zeros(shape, np.float32)), SPEC)
    assert refusal.value.extensions["allowed"] == [None, 3, 4, 5]


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (0,)])
def test_an_empty_axis_is_refused(shape: tuple[int, ...]) -> None:
    for spec in (SPEC, replace(SPEC, shape=None)):
        with pytest.raises(ShapeMismatch):
            read_tensor(saved(np.zeros(shape, np.float32)), spec)


def test_a_single_number_is_no_tensor_even_where_the_rank_is_unknown() -> None:
    with pytest.raises(ShapeMismatch):
        read_tensor(saved(np.array(3, np.float32)), replace(SPEC, shape=None))


@pytest.mark.parametrize("images", [1, 3, 8])
def test_a_batch_fixed_to_several_takes_that_many(images: int) -> None:
    spec = replace(SPEC, shape=(4, 3, 4, 5))
    with pytest.raises(ShapeMismatch):
        read_tensor(saved(np.repeat(VALUES, images, 0)), spec)


# What is malformed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x93NUMPY",
        b"PK\3\4" + b"\0" * 40,
        saved(VALUES)[:90],
        written(header(), VALUES.tobytes(), b"\x93NUMPY\3\0"),
        written(header(), VALUES.tobytes(), b"\x93NUMPY\x09\0"),
        written("{}"),
        written("[" * 3000),
        written("-" * 4000 + "1"),
        written("{'descr': '<f4'" + " " * 5000 + "}"),
        written(header(descr="'nonsense'")),
        written(header(shape="(1.5, 2)")),
        written(header(shape="60")),
        written(header(order="'maybe'")),
        b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 100,
    ],
)
def test_what_is_not_an_npy_file_is_refused_with_the_way_to_write_one(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"numpy\.save"):
        read_tensor(body, SPEC)


@pytest.mark.parametrize("change", [-1, 1, -240, 1000])
def test_more_or_fewer_bytes_than_announced_are_refused(change: int) -> None:
    body = saved(VALUES)
    body = body[:change] if change < 0 else body + bytes(change)
    with pytest.raises(MalformedRequest, match=f"announces 240 bytes of data, {240 + change} follow"):
        read_tensor(body, SPEC)


@pytest.mark.parametrize("shape", ["(1, 3, 400000000000, 5)", "(9" + "9" * 600 + ",)"])
def test_an_absurd_shape_allocates_nothing(shape: str) -> None:
    with pytest.raises(MalformedRequest, match="announces"):
        read_tensor(written(header(shape=shape), bytes(240)), SPEC)


def test_negative_sides_are_refused() -> None:
    with pytest.raises(MalformedRequest, match="negative"):
        read_tensor(written(header(shape="(-1, 3, 4, -5)"), VALUES.tobytes()), SPEC)


def test_python_objects_are_never_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("unpickled",)

    file = io.BytesIO()
    np.save(file, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(MalformedRequest, match="Python objects"):
        read_tensor(file.getvalue(), SPEC)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 127), st.integers(0, 255), st.integers(0, 400))
def test_a_damaged_file_meets_only_our_refusals(at: int, value: int, end: int) -> None:
    body = bytearray(saved(VALUES))
    body[at] = value
    with suppress(RequestError):
        assert read_tensor(bytes(body[:end]), SPEC).tensor.shape == (1, 3, 4, 5)
