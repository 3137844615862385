"""An ONNX model's large weights, which stay on disk and are read when a part of the graph is compiled.

A weight's bytes are the field `raw_data` of a tensor in the graph of the model (onnx.proto, protobuf
wire format). Without them even a large network is a small message.
"""

import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from service.errors import ModelFailed

# Field numbers of onnx.proto.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_NAME, TENSOR_RAW_DATA = 7, 5, 8, 9
# Wire types of protobuf.
VARINT, FIXED64, LENGTH_PREFIXED, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
# Constants that are looked at (shapes, pads, scales) stay in the message: 1024 elements of 16 bytes.
LARGE_BYTES = 16 * 1024
MAX_VARINT_BYTES = 10

Place = tuple[int, int]  # offset in the file and length, bytes


class WeightFile:
    """Reads weights back by their places; refuses a file that was changed since it was opened."""

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        self._places = places
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened = _state(os.fstat(self._descriptor))
        weakref.finalize(self, os.close, self._descriptor)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> bytes:
        """The raw bytes of one weight.

        Raises:
            ModelFailed: the file was changed after it was loaded.
        """
        offset, length = self._places[name]
        content = os.pread(self._descriptor, length, offset)
        if len(content) != length or _state(os.fstat(self._descriptor)) != self._opened:
            raise ModelFailed("the model's file was changed after it was loaded")
        return content


class ExternalFiles:
    """The files that hold a model's external data, which others read by their names, each as it was found."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._found = {path: _state(path.stat()) for path in paths}

    def check(self) -> None:
        """Refuse to go on with another file's weights: to be called before any are read.

        Raises:
            ModelFailed: one of the files was changed or removed after the model was loaded.
        """
        for path, found in self._found.items():
            changed = f"the external data file {path.name!r} was changed after it was loaded"
            try:
                state = _state(path.stat())
            except OSError as error:
                raise ModelFailed(changed) from error
            if state != found:
                raise ModelFailed(changed)


def without_weights(content: bytes, most_parts: int) -> tuple[bytes, dict[str, Place]]:
    """The model without the bytes of its large weights, and where in the file those lie.

    Raises:
        ModelFailed: the content is no protobuf message, it is truncated, or its graph holds more nodes,
            tensors or anything else than `most_parts`.
    """
    places: dict[str, Place] = {}
    model = bytearray()
    for number, start, body, end in _fields(content, 0, len(content)):
        if number == MODEL_GRAPH:
            _append(model, MODEL_GRAPH, _light_graph(content, (body, end), places, most_parts))
        else:
            model += content[start:end]
    return bytes(model), places


def _light_graph(content: bytes, span: tuple[int, int], places: dict[str, Place], most_parts: int) -> bytes:
    graph, parts = bytearray(), Counter[int]()
    for number, first, body, last in _fields(content, *span):
        parts[number] += 1
        if parts[number] > most_parts:
            raise ModelFailed(
                f"the graph has more nodes or stored tensors than max_model_nodes allows, {most_parts}"
            )
        place = _large_weight(content, body, last) if number == GRAPH_INITIALIZER else None
        if place is None or place[0] in places:
            graph += content[first:last]
        else:
            name, offset, length, light = place
            places[name] = (offset, length)
            _append(graph, GRAPH_INITIALIZER, light)
    return bytes(graph)


def _large_weight(content: bytes, start: int, end: int) -> tuple[str, int, int, bytes] | None:
    """Name, place and the rest of a tensor whose bytes are many; None for any other."""
    name, raw, light = "", None, bytearray()
    for number, first, body, last in _fields(content, start, end):
        if number == TENSOR_RAW_DATA:
            raw = (body, last - body)
            continue
        if number == TENSOR_NAME:
            name = content[body:last].decode("utf-8", "replace")
        light += content[first:last]
    if not name or raw is None or raw[1] <= LARGE_BYTES:
        return None
    return name, *raw, bytes(light)


def _fields(content: bytes, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, first byte, first byte of the value, and end of each field of a message."""
    while position < end:
        start = position
        tag, position = _varint(content, position, end)
        kind = tag & 7
        if kind == LENGTH_PREFIXED:
            length, position = _varint(content, position, end)
        elif kind == VARINT:
            length = _varint(content, position, end)[1] - position
        else:
            length = FIXED_BYTES.get(kind, end)
        if position + length > end:
            raise ModelFailed("the file is not ONNX, or it is truncated")
        yield tag >> 3, start, position, position + length
        position += length


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the position after it."""
    value = 0
    for i in range(position, min(end, position + MAX_VARINT_BYTES)):
        value |= (content[i] & 0x7F) << 7 * (i - position)
        if content[i] < 0x80:
            return value, i + 1
    raise ModelFailed("the file is not ONNX, or it is truncated")


def _append(message: bytearray, number: int, body: bytes) -> None:
    """Write one length-prefixed field."""
    for value in (number << 3 | LENGTH_PREFIXED, len(body)):
        while value >= 0x80:
            message.append(value & 0x7F | 0x80)
            value >>= 7
        message.append(value)
    message += body


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
