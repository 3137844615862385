"""Inputs of the v2 protocol: bytes or numbers of a datatype and a shape to arrays.

Nothing is allocated before the shape agrees with the input's length. Numbers in JSON are parsed in pieces,
because no library parses a whole list within 150 MB: 32 MiB of `0,0,...` as FP32 cost 104 MB here, 637 MB
with pysimdjson 7.0 (a tape of 16 bytes per number, then float64) and 740 MB with msgspec 0.23 (a list of
floats). Neither takes `NaN` and `Infinity`.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
import orjson

from service.dtypes import DATATYPE_OF, DATATYPES
from service.errors import MalformedRequest, ShapeMismatch
from service.values import Array, TensorSpec

# numpy finds bfloat16 by its name only once the package is there.
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WITHOUT_JSON = ("FP16", "BF16")
# Texts are objects each; networks that read them read few.
MOST_TEXTS = 1 << 16
MOST_ELEMENTS = 1 << 40
DEEPEST_NESTING = 100
PIECE_BYTES = 1 << 16
WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
NO_NUMBER = b"[], \t\r\n"


def read_binary(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Array:
    """Little-endian, row-major values as they are; texts are a uint32 length and bytes each.

    Returns:
        The shape's array, aligned, read-only where it is a view of `data`; of `bytes` for texts.

    Raises:
        MalformedRequest: more or fewer bytes than the shape needs, or what the datatype cannot hold.
    """
    elements = _elements(name, shape)
    if datatype == "BYTES":
        return _shaped(name, _texts(name, data, elements), shape)
    dtype = np.dtype(DATATYPES[datatype])
    if len(data) != elements * dtype.itemsize:
        raise MalformedRequest(
            f"unexpected size for input {name!r}: {datatype} of shape {list(shape)} takes "
            f"{elements * dtype.itemsize} bytes, and {len(data)} were sent",
            limit=elements * dtype.itemsize,
            actual=len(data),
        )
    if not elements:
        return np.empty(shape, dtype)
    if datatype == "BOOL" and np.frombuffer(data, np.uint8).max() > 1:
        raise MalformedRequest(f"input {name!r} is BOOL, and its bytes are 0 or 1")
    values = np.frombuffer(data, dtype).reshape(shape)
    return np.require(values, requirements=["C_CONTIGUOUS", "ALIGNED"])


def read_numbers(name: str, datatype: str, shape: Sequence[int], text: bytes) -> Array:
    """A JSON list of numbers, flat or nested, row-major; NaN, Infinity and -Infinity are numbers too.

    Raises:
        MalformedRequest: not so many numbers, one that the datatype cannot hold, nesting too deep, no
            list, or a datatype that has no JSON form.
    """
    if datatype in WITHOUT_JSON:
        raise MalformedRequest(
            f"input {name!r} is {datatype}, which JSON cannot carry: send it with binary_data_size"
        )
    elements = _elements(name, shape)
    # Every number has a digit and, but for one, a comma.
    if elements > (len(text) + 1) // 2:
        raise _another_count(name, shape, "fewer")
    if not elements:
        if text.strip(NO_NUMBER):
            raise _another_count(name, shape, "more")
        return np.empty(shape, DATATYPES[datatype])
    _check_nesting(name, text)
    values = np.empty(elements, DATATYPES[datatype])
    count = 0
    for piece in _pieces(name, text):
        found = _fitting(name, datatype, _parsed(name, piece), infinite=b"I" in piece)
        if count + len(found) > elements:
            raise _another_count(name, shape, "more")
        values[count : count + len(found)] = found
        count += len(found)
    if count < elements:
        raise _another_count(name, shape, "fewer")
    return values.reshape(shape)


def read_texts(name: str, shape: Sequence[int], data: Sequence[Any]) -> Array:
    """Texts of a JSON list, flat or nested: an array of `bytes` in UTF-8.

    Raises:
        MalformedRequest: not so many, or something that is no text.
    """
    elements = _elements(name, shape)
    found: list[bytes] = []
    waiting = [iter(data)]
    while waiting:
        item = next(waiting[-1], waiting)
        if item is waiting:
            waiting.pop()
        elif isinstance(item, list) and len(waiting) < DEEPEST_NESTING:
            waiting.append(iter(item))
        elif isinstance(item, str) and len(found) < min(elements, MOST_TEXTS):
            found.append(item.encode("utf-8", "surrogatepass"))
        else:
            raise MalformedRequest(f"input {name!r} takes {elements} texts of at most {MOST_TEXTS}")
    if len(found) != elements:
        raise _another_count(name, shape, "fewer")
    return _shaped(name, found, shape)


def check_fits(values: Array, spec: TensorSpec, *, any_batch: bool) -> Array:
    """The values as the graph takes them: texts as `str`; with `any_batch` however many images lie in a row.

    Raises:
        ShapeMismatch: another datatype, rank or fixed side than the graph's.
        MalformedRequest: a text that is not UTF-8.
    """
    dtype = "str" if values.dtype == object else values.dtype.name
    if dtype != spec.dtype:
        given, allowed = DATATYPE_OF[dtype], DATATYPE_OF.get(spec.dtype, spec.dtype)
        raise ShapeMismatch(
            f"input {spec.name!r} takes {allowed}, and {given} was sent", given=given, allowed=allowed
        )
    if spec.shape is not None and not _is_shape(values.shape, spec.shape, any_batch=any_batch):
        sides = [-1 if side is None else side for side in spec.shape]
        raise ShapeMismatch(
            f"input {spec.name!r} has the shape {sides}, -1 being any, and {list(values.shape)} was sent",
            given=list(values.shape),
            allowed=sides,
        )
    return _decoded(values, spec.name) if dtype == "str" else values


def _is_shape(shape: Sequence[int], allowed: Sequence[int | None], *, any_batch: bool) -> bool:
    if len(shape) != len(allowed):
        return False
    free = [side is None for side in allowed]
    free[:1] = [any_batch or free[0]] if free else []
    return all(is_free or given == side for is_free, given, side in zip(free, shape, allowed, strict=True))


def _decoded(texts: Array, name: str) -> Array:
    decoded = np.empty(texts.shape, object)
    try:
        decoded.reshape(-1)[:] = [text.decode() for text in texts.reshape(-1)]
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"input {name!r} holds a text that is not UTF-8") from error
    return decoded


def _elements(name: str, shape: Sequence[int]) -> int:
    if math.prod(max(side, 1) for side in shape) > MOST_ELEMENTS:
        raise MalformedRequest(f"the shape of input {name!r} is larger than any memory")
    return math.prod(shape)


def _texts(name: str, data: memoryview, elements: int) -> list[bytes]:
    if elements > MOST_TEXTS:
        raise MalformedRequest(
            f"input {name!r} holds {elements} texts; at most {MOST_TEXTS} are taken", limit=MOST_TEXTS
        )
    found, start = [], 0
    for _ in range(elements):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or end > len(data):
            raise MalformedRequest(f"unexpected size for input {name!r}: its texts are cut off")
        found.append(bytes(data[start + 4 : end]))
        start = end
    if start != len(data):
        raise MalformedRequest(
            f"unexpected size for input {name!r}: {len(data) - start} bytes follow its texts"
        )
    return found


def _shaped(name: str, texts: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _check_nesting(name: str, text: bytes) -> None:
    """Check that the brackets are those of one list, which nothing precedes or follows."""
    codes = np.frombuffer(text, np.uint8)
    # In place and in 8 bits to save memory: before a depth wraps around it has been too deep.
    depths = (codes == ord("[")).view(np.int8)
    depths -= codes == ord("]")
    np.cumsum(depths, dtype=np.int8, out=depths)
    if depths[-1] or depths[:-1].min(initial=1) < 1 or depths.max() > DEEPEST_NESTING:
        raise MalformedRequest(
            f"the data of input {name!r} is no list, or lists are nested deeper than {DEEPEST_NESTING}"
        )


def _pieces(name: str, text: bytes) -> Iterator[bytes]:
    """Cut the text at commas and leave out its brackets."""
    start = 0
    while start <= len(text):
        comma = text.find(b",", start + PIECE_BYTES)
        end = len(text) if comma < 0 else comma
        if end - start > 2 * PIECE_BYTES:
            raise MalformedRequest(f"input {name!r} holds a number that is too long")
        yield text[start:end].translate(WITHOUT_BRACKETS)
        start = end + 1


def _parsed(name: str, piece: bytes) -> Any:
    """Parse numbers between commas; NaN and Infinity are not JSON, but Python's parser takes them."""
    text = b"[" + piece + b"]"
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest(f"the data of input {name!r} is not a list of numbers") from error


def _fitting(name: str, datatype: str, found: Sequence[Any], *, infinite: bool) -> Array:
    """The numbers in their datatype, none cut; one becomes infinite only where it was written so."""
    dtype, kinds = np.dtype(DATATYPES[datatype]), set(map(type, found))
    try:
        if dtype.kind == "f" and kinds and kinds <= {int, float}:
            with np.errstate(over="ignore"):
                values = np.array(found, np.float64).astype(dtype)
            if infinite or not np.isinf(values).any():
                return values
        elif dtype.kind in "biu" and kinds == {int} and (datatype != "BOOL" or set(found) <= {0, 1}):
            return np.array(found, dtype)
        elif kinds == {bool} and datatype == "BOOL":
            return np.array(found)
    except OverflowError:
        pass
    raise MalformedRequest(f"the data of input {name!r} holds something that is no {datatype}")


def _another_count(name: str, shape: Sequence[int], which: str) -> MalformedRequest:
    return MalformedRequest(
        f"unexpected size for input {name!r}: {which} values were sent than the shape {list(shape)} holds"
    )
