"""From the bytes of an inference request to what it asks: JSON, and behind it the bytes of its inputs.

Runs in a thread. Lists of numbers are taken out of the JSON before it is parsed, so that a body of any
kind costs a few times its length in memory.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from service.errors import BodyTooLarge, MalformedRequest
from service.intake.tensors import read_binary, read_numbers, read_texts
from service.values import Array
from service.web.v2.parameters import read_outputs, read_timeout_s
from service.web.v2.request import Output
from service.web.v2.schemas import MOST_INPUTS, InferenceRequest, InputTensor
from service.web.validation import name_of, parse_json, words_of

# What is left of the JSON without its numbers: names, parameters, texts.
LONGEST_JSON_BYTES = 2 << 20
# Of that JSON; numbers are not among it, texts are.
MOST_VALUES = 1 << 16
# A list of numbers with its key; without `{` and `"` it ends before anything else of the JSON begins.
NUMBERS = re.compile(rb'("data"[ \t\r\n]{0,64}:[ \t\r\n]{0,64})(\[[-+.0-9eE, \t\r\n\[\]NaInfiytruls]*\])')
MOST_SPACES = 64


@dataclass(frozen=True)
class Asked:
    """What the bytes of a request say; None stands for what they do not say."""

    head_bytes: int
    default: Output
    outputs: tuple[Output, ...] | None = None
    tensors: Mapping[str, Array] | None = None
    id: str | None = None
    timeout_s: float | None = None


def read_inference(body: bytes, head_length: str | None) -> Asked:
    """The whole request; `head_length` is Inference-Header-Content-Length.

    Raises:
        MalformedRequest, InvalidParameter, NotCombinable
        BodyTooLarge: the JSON without its numbers is too long.
    """
    length = _head_length(head_length, len(body))
    if head_length is not None and length == 0:
        _, default = read_outputs(None, {"binary_data_output": True})
        return Asked(0, default)
    text, numbers = _cut_numbers(body[:length])
    request = _parsed(text)
    tensors = _read_inputs(request, numbers, memoryview(body)[length:], has_head=head_length is not None)
    outputs, default = read_outputs(request.outputs, request.parameters)
    return Asked(length, default, outputs, tensors, request.id, read_timeout_s(request.parameters))


def _head_length(given: str | None, size: int) -> int:
    if given is None:
        return size
    if not re.fullmatch(r"[0-9]{1,19}", given) or int(given) > size:
        raise MalformedRequest(
            f"inference header size should be in range (0, {size}), got: {given[:40]!r}", limit=size
        )
    return int(given)


def _cut_numbers(text: bytes) -> tuple[bytes, Mapping[str, bytes]]:
    """Replace each list of numbers called `data` by a name; return the short JSON and the lists by name.

    A quote within a JSON text has a backslash before it, so `{"data"` and `,"data"` are keys.
    """
    secret, numbers = secrets.token_hex(8), dict[str, bytes]()

    def replace(found: re.Match[bytes]) -> bytes:
        before = text[max(found.start() - MOST_SPACES, 0) : found.start()].rstrip()
        if not before.endswith((b"{", b",")):
            return found[0]
        name = f"{secret}.{len(numbers)}"
        numbers[name] = found[2]
        return found[1] + orjson.dumps(name)

    return NUMBERS.sub(replace, text, count=MOST_INPUTS), numbers


def _parsed(text: bytes) -> InferenceRequest:
    if len(text) > LONGEST_JSON_BYTES:
        raise BodyTooLarge(
            f"the JSON holds {len(text)} bytes beside its numbers; at most {LONGEST_JSON_BYTES} are taken: "
            "send texts and images behind the JSON, with binary_data_size",
            limit=LONGEST_JSON_BYTES,
            actual=len(text),
        )
    try:
        return InferenceRequest.model_validate(parse_json(text, MOST_VALUES), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = name_of(first["loc"]) or "body"
        raise MalformedRequest(f"{where}: {words_of(first)}", parameter=where) from error


def _read_inputs(
    request: InferenceRequest, numbers: Mapping[str, bytes], behind: memoryview, *, has_head: bool
) -> dict[str, Array]:
    """Each input's values; those behind the JSON follow each other in its order."""
    tensors: dict[str, Array] = {}
    start = 0
    for given in request.inputs:
        if given.name in tensors:
            raise MalformedRequest(f"input {given.name!r} is given twice")
        if (size := _binary_size(given, len(request.inputs), len(behind), has_head=has_head)) is None:
            tensors[given.name] = _from_json(given, numbers)
            continue
        if start + size > len(behind):
            raise MalformedRequest(
                f"unexpected size for input {given.name!r}: {size} bytes are announced, and "
                f"{len(behind) - start} are left behind the JSON"
            )
        piece = behind[start : start + size]
        tensors[given.name] = read_binary(given.name, given.datatype, given.shape, piece)
        start += size
    if start < len(behind):
        raise MalformedRequest(
            f"unexpected additional input data: {len(behind) - start} bytes that belong to no input"
        )
    return tensors


def _binary_size(given: InputTensor, inputs: int, behind: int, *, has_head: bool) -> int | None:
    """How many bytes behind the JSON are an input's; None where its data stands in the JSON."""
    parameters = dict(given.parameters)
    size = parameters.pop("binary_data_size", None)
    for name in parameters:
        raise MalformedRequest(
            f"input {given.name!r} has the parameter {name[:100]!r}, which is not taken here"
        )
    if "data" in given.model_fields_set:
        if size is not None:
            raise MalformedRequest(f"input {given.name!r} has both data and binary_data_size: give one")
        return None
    if size is None and has_head and inputs == 1:
        return behind
    if type(size) is not int or size < 0:
        raise MalformedRequest(
            f"input {given.name!r} needs data, or binary_data_size: how many bytes are its"
        )
    if not has_head:
        raise MalformedRequest(
            f"input {given.name!r} has binary_data_size, so Inference-Header-Content-Length has to tell "
            "where the JSON ends"
        )
    return size


def _from_json(given: InputTensor, numbers: Mapping[str, bytes]) -> Array:
    data: Any = given.data
    if isinstance(data, str) and data in numbers:
        text = numbers[data]
        if given.datatype != "BYTES":
            return read_numbers(given.name, given.datatype, given.shape, text)
        data = [] if not text.strip(b"[], \t\r\n") else None
    if not isinstance(data, list):
        raise MalformedRequest(f"the data of input {given.name!r} is no list of its datatype")
    if given.datatype == "BYTES":
        return read_texts(given.name, given.shape, data)
    # A list that was not found in the text, such as one whose key is written with escapes.
    return read_numbers(given.name, given.datatype, given.shape, orjson.dumps(data))
