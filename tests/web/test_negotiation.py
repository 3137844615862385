"""Which format and which content encoding a client gets."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotAcceptable
from service.output.table import FORMATS, find_format
from service.web.negotiation import choose_coding, choose_format

NPZ, SAFETENSORS, NPY, ARROW = (f.media_type for f in FORMATS.values())


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
    assert find_format(choose_format(accept)).name == expected


@pytest.mark.parametrize("accept", ["text/html", "application/json", "*/*;q=0", f"{NPZ};q=0"])
def test_accept_that_names_none_of_ours_is_refused(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="application/x-npz"):
        choose_format(accept)


@given(st.text(max_size=60))
def test_any_accept_header_is_answered_or_refused(accept: str) -> None:
    with contextlib.suppress(NotAcceptable):
        assert find_format(choose_format(accept)).name in FORMATS


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
def test_accept_encoding_chooses_a_coding(accept_encoding: str | None, expected: str | None) -> None:
    assert choose_coding(accept_encoding) == expected
