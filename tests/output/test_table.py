"""Which format and which coding a client gets."""

import contextlib
import gzip
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidParameter, NotAcceptable
from service.output.coding import CODERS, choose_coding, encode
from service.output.table import FORMATS, choose_format
from service.values import Coding

NPZ, SAFETENSORS, NPY, ARROW = (f.media_type for f in FORMATS.values())
DECODERS: dict[Coding, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "npz"),
        ("", "npz"),
        ("*/*", "npz"),
        ("application/*", "npz"),
        (SAFETENSORS, "safetensors"),
        (f"{NPY}, {SAFETENSORS}", "safetensors"),
        (f"{NPY};q=1, {SAFETENSORS};q=0.5", "npy"),
        (f"{NPZ};q=0, */*", "safetensors"),
        ("application/problem+json", "npz"),
        (f"application/problem+json, {NPY}", "npy"),
        ("text/html, */*;q=0.1", "npz"),
    ],
)
def test_accept_chooses_a_format(accept: str | None, expected: str) -> None:
    assert choose_format(None, accept).name == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json", "*/*;q=0", f"{NPZ};q=0"])
def test_accept_that_names_none_of_ours_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/x-npz"):
        choose_format(None, accept)


def test_the_format_by_name_wins_over_accept() -> None:
    assert choose_format("npy", "text/html").name == "npy"


def test_an_unknown_format_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidParameter, match="npz, safetensors, npy, arrow"):
        choose_format("hdf5", None)


@given(st.text(max_size=60))
def test_any_accept_header_is_answered_or_refused(accept: str) -> None:
    with contextlib.suppress(NotAcceptable):
        assert choose_format(None, accept).name in FORMATS


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        (None, None),
        ("", None),
        ("identity", None),
        ("br", None),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("*", "zstd"),
        ("*;q=0", None),
        ("gzip;q=x", None),
    ],
)
def test_accept_encoding_chooses_a_coding(accept_encoding: Coding | None, expected: str | None) -> None:
    assert choose_coding(accept_encoding) == expected


@pytest.mark.parametrize("coding", DECODERS)
def test_a_coding_is_undone_by_its_own_reader(coding: Coding) -> None:
    body = np.maximum(np.random.default_rng(0).normal(size=50_000), 0).astype(np.float32).tobytes()
    packed = encode((b"header", body), coding)
    assert packed is not None
    assert DECODERS[coding](b"".join(packed)) == b"header" + body


@pytest.mark.parametrize("coding", DECODERS)
def test_a_large_answer_that_does_not_shrink_is_found_out_by_a_sample(
    coding: Coding, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []
    real = CODERS[coding]
    monkeypatch.setitem(CODERS, coding, lambda chunks: packed.append(sum(map(len, chunks))) or real(chunks))
    assert encode((np.random.default_rng(0).bytes(4 << 20),), coding) is None
    assert sum(packed) < 1 << 17


@pytest.mark.parametrize("coding", DECODERS)
def test_what_gains_under_a_tenth_is_sent_as_it_is(coding: Coding) -> None:
    assert encode((np.random.default_rng(0).bytes(100_000),), coding) is None


@pytest.mark.parametrize("coding", DECODERS)
def test_small_answers_are_not_coded(coding: Coding) -> None:
    assert encode((b"0" * 1000,), coding) is None
