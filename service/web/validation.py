"""JSON and pydantic at the door: parsing that is bounded, and refusals that name the place of the value."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from service.errors import MalformedRequest

LONGEST_NAME = 100


def parse_json(body: bytes, most_values: int) -> Any:
    """A JSON document of so many values at most.

    A value of two bytes becomes an object of dozens, and a refusal of hundreds more: what a body may cost
    is bounded by what is counted here, not by its length.

    Raises:
        MalformedRequest
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > most_values:
        raise MalformedRequest(f"the JSON holds more than {most_values} commas and brackets")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest("the body is not JSON, or is nested too deeply") from error


def refused(error: ValidationError, place: Literal["body", "query"]) -> RequestValidationError:
    """Pydantic's problems, placed where the framework would have found them."""
    found = error.errors(include_url=False, include_input=False)
    return RequestValidationError([{**problem, "loc": (place, *problem["loc"])} for problem in found])


def words_of(problem: Mapping[str, Any]) -> str:
    """Pydantic's words for a problem, less the names of our classes."""
    return "Input should be an object" if problem["type"] == "model_type" else str(problem["msg"])


def name_of(place: Sequence[int | str]) -> str:
    """Where a wrong value stands, as `inputs.0.shape`; names are the client's and may be of any length."""
    return ".".join(str(part)[:LONGEST_NAME] for part in place)
