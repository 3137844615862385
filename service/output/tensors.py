"""The v2 protocol's answer: JSON, and after it the bytes of those outputs that are wanted so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from service.dtypes import DATATYPE_OF
from service.errors import AnswerTooLarge, MalformedRequest
from service.values import Array, Chunk

WITHOUT_JSON = ("float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class Named:
    """One output of an answer; texts are an array of Python's `str` objects."""

    name: str
    values: Array
    binary: bool


def datatype_of(name: str, dtype: str) -> str:
    """The protocol's name of a dtype.

    Raises:
        MalformedRequest: it has none.
    """
    if dtype not in DATATYPE_OF:
        raise MalformedRequest(f"output {name!r} holds {dtype}, which the v2 protocol has no name for")
    return DATATYPE_OF[dtype]


def check_json(name: str, dtype: str) -> None:
    """Refuse, before anything runs, what has no JSON form.

    Raises:
        MalformedRequest
    """
    if dtype in WITHOUT_JSON:
        raise MalformedRequest(
            f"output {name!r} is {DATATYPE_OF[dtype]}, which JSON cannot carry: ask for it with binary_data"
        )


def encode(
    outputs: Sequence[Named], told: Mapping[str, Any], *, max_json_bytes: int
) -> tuple[tuple[Chunk, ...], int | None]:
    """The body, and how long its JSON part is where bytes may follow it.

    Raises:
        AnswerTooLarge: the JSON part is.
        MalformedRequest: a value that JSON cannot carry is wanted in it.
    """
    binary = [_bytes_of(output.values) for output in outputs if output.binary]
    sizes = iter([sum(map(len, pieces)) for pieces in binary])
    rows = [_row(output, next(sizes) if output.binary else None) for output in outputs]
    head = orjson.dumps({**told, "outputs": rows})
    if len(head) > max_json_bytes:
        raise AnswerTooLarge(
            f"the answer as JSON is {len(head)} bytes and at most {max_json_bytes} are sent: ask with "
            "binary_data, for fewer outputs, pool=avg or a smaller grid",
            limit=max_json_bytes,
            actual=len(head),
        )
    return (head, *(piece for pieces in binary for piece in pieces)), len(head) if binary else None


def _row(output: Named, size: int | None) -> Mapping[str, Any]:
    dtype = "str" if output.values.dtype == object else output.values.dtype.name
    row = {"name": output.name, "datatype": datatype_of(output.name, dtype), "shape": output.values.shape}
    if size is not None:
        return {**row, "parameters": {"binary_data_size": size}}
    check_json(output.name, dtype)
    return {**row, "data": orjson.Fragment(_numbers(output.values))}


def _numbers(values: Array) -> bytes:
    """A flat list. NaN and infinity are written as clients of the protocol, and Python, read them."""
    flat = values.reshape(-1)
    if flat.dtype == object:
        return orjson.dumps(flat.tolist())
    text = orjson.dumps(np.ascontiguousarray(flat), option=orjson.OPT_SERIALIZE_NUMPY)
    if flat.dtype.kind != "f" or np.isfinite(flat).all():
        return text
    return b"".join(_with_words(text, flat[~np.isfinite(flat)]))


def _with_words(text: bytes, words: Array) -> Iterator[bytes]:
    """orjson writes null for each value that is not finite."""
    first, *rest = text.split(b"null")
    yield first
    for word, piece in zip(words, rest, strict=True):
        yield b"NaN" if np.isnan(word) else b"Infinity" if word > 0 else b"-Infinity"
        yield piece


def _bytes_of(values: Array) -> tuple[Chunk, ...]:
    """Little-endian, row-major, a view where they lie so already; texts with their lengths before them."""
    if values.dtype == object:
        texts = [text.encode("utf-8", "surrogatepass") for text in values.reshape(-1)]
        return (b"".join(len(text).to_bytes(4, "little") + text for text in texts),)
    if not values.size:
        return ()
    return (np.ascontiguousarray(values).reshape(-1).view(np.uint8).data,)
