"""Formats by their names, and compression where it pays."""

import gzip
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from service.errors import InvalidParameter
from service.output.coding import CODERS, encode
from service.output.table import FORMATS, find_format
from service.values import Coding

DECODERS: dict[Coding, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


def test_a_format_is_found_by_its_name() -> None:
    assert find_format("npy") is FORMATS["npy"]
    assert find_format(None) is FORMATS["npz"]


def test_an_unknown_format_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidParameter, match="npz, safetensors, npy, arrow"):
        find_format("hdf5")


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
