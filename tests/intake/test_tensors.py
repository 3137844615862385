"""Inputs of the v2 protocol: bytes and numbers to arrays, and bodies unpacked within a bound."""

import gzip
import json
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.dtypes import DATATYPES
from service.errors import BodyTooLarge, MalformedRequest, Overloaded
from service.intake import tensors
from service.intake.inflate import PIECE_BYTES, inflate
from service.intake.tensors import read_binary, read_numbers, read_texts

WITH_JSON = sorted(set(DATATYPES) - {"FP16", "BF16", "BYTES"})
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0)
ARRAYS = st.sampled_from(WITH_JSON).flatmap(
    lambda datatype: st.tuples(st.just(datatype), hnp.arrays(DATATYPES[datatype], SHAPES))
)


@given(ARRAYS, st.integers(1, 40), st.booleans())
@settings(deadline=None)
def test_numbers_as_python_writes_them_are_read_back_wherever_the_text_is_cut(
    pair: tuple[str, np.ndarray], piece_bytes: int, flat: bool
) -> None:
    datatype, array = pair
    values = array.reshape(-1) if flat or not array.ndim else array
    text = json.dumps(values.tolist()).encode()
    with pytest.MonkeyPatch.context() as patch:
        # A number is up to 25 characters long; longer ones than two pieces are refused.
        patch.setattr(tensors, "PIECE_BYTES", piece_bytes + 25)
        found = read_numbers("x", datatype, array.shape, text)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype


@given(ARRAYS)
@settings(deadline=None)
def test_bytes_are_read_back(pair: tuple[str, np.ndarray]) -> None:
    datatype, array = pair
    found = read_binary("x", datatype, array.shape, memoryview(b"x" + array.tobytes())[1:])
    np.testing.assert_array_equal(found, array)
    assert found.flags.aligned


@given(st.lists(st.text(max_size=9), max_size=9))
def test_texts_are_the_same_as_json_and_as_bytes(texts: list[str]) -> None:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    packed = b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    assert read_texts("x", [len(texts)], texts).tolist() == encoded
    assert read_binary("x", "BYTES", [len(texts)], memoryview(packed)).tolist() == encoded


@pytest.mark.parametrize("value", [2, 255])
def test_a_truth_is_one_or_nothing(value: int) -> None:
    with pytest.raises(MalformedRequest, match="0 or 1"):
        read_binary("x", "BOOL", [1], memoryview(bytes([value])))


@pytest.mark.parametrize(
    "text", [b"[1,2", b"1,2]", b"[1,,2]", b"[1,2,]", b"[1][2]", b"[[1],2]]", b"[1 2]", b"{}"]
)
def test_what_is_no_list_of_numbers_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_numbers("x", "FP32", [2], text)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, 3 * PIECE_BYTES + 1])
def test_what_is_unpacked_is_what_was_packed_and_is_counted(
    pack: Callable[[bytes], bytes], size: int
) -> None:
    for body in (np.random.default_rng(0).bytes(size), bytes(size), b"abc" * (size // 3)):
        taken: list[int] = []
        assert inflate(pack(body), max_bytes=size, take=taken.append) == body
        assert sum(taken) == len(body)


def test_what_unpacks_to_too_much_is_refused_on_the_way() -> None:
    taken: list[int] = []
    with pytest.raises(BodyTooLarge):
        inflate(gzip.compress(bytes(100 << 20)), max_bytes=1 << 20, take=taken.append)
    assert sum(taken) <= (1 << 20) + PIECE_BYTES


def test_who_holds_too_much_already_ends_the_unpacking() -> None:
    def take(count: int) -> None:
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        inflate(gzip.compress(bytes(1 << 20)), max_bytes=1 << 30, take=take)
