"""Query parameters: read by pydantic itself, and told to OpenAPI.

FastAPI looks at each field of a query anew for each request, which for ours takes longer than HTTP does.
"""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import InvalidParameter
from service.web.validation import refused

Query = TypeVar("Query", bound=BaseModel)
REPEATABLE = ("layers",)
# No operation takes as many; pydantic's words for 12,000 unknown ones took a tenth of a second.
MOST_NAMES = 100
NULL = {"type": "null"}


def read_query(request: Request, kind: type[Query]) -> Query:
    """Read a query as one of the models of `queries`.

    Raises:
        InvalidParameter: a parameter with one value is given more than once, or there are far too many.
        RequestValidationError: one that does not exist, or a wrong value.
    """
    try:
        return kind.model_validate(_given(request))
    except ValidationError as error:
        raise refused(error, "query") from error


async def refuse_parameters(request: Request) -> None:
    """For operations that take none.

    Raises:
        InvalidParameter
    """
    for name in request.query_params:
        raise InvalidParameter(
            f"there is no parameter {name[:100]!r}; /openapi.json shows all", parameter=name[:100]
        )


def path_value(request: Request, name: str, pattern: str) -> str:
    """Return a value that the path names.

    Raises:
        InvalidParameter: it does not match the pattern.
    """
    value = str(request.path_params[name])
    if not re.fullmatch(pattern, value):
        raise InvalidParameter(f"{name}: String should match pattern '{pattern}'", parameter=name)
    return value


def parameters(kind: type[BaseModel]) -> list[dict[str, Any]]:
    """The query's parameters as OpenAPI's parameter objects."""
    schema = without_null(kind.model_json_schema())
    required = schema.get("required", ())
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": {key: value for key, value in told.items() if key != "description"},
            **({"description": told["description"]} if "description" in told else {}),
        }
        for name, told in schema["properties"].items()
    ]


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema where what may be left out is left out, and not null, which no query can say."""
    return schema | {"properties": {name: _given_value(told) for name, told in schema["properties"].items()}}


def _given_value(told: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in told.get("anyOf", ()) if kind != NULL]
    if NULL not in told.get("anyOf", ()) or len(kinds) != 1:
        return told
    kind: dict[str, Any] = kinds[0]
    return kind | {key: value for key, value in told.items() if key != "anyOf" and value is not None}


def _given(request: Request) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in REPEATABLE:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise InvalidParameter(f"{name[:100]} is given more than once", parameter=name[:100])
        else:
            values[name] = value
        if len(values) > MOST_NAMES:
            raise InvalidParameter(
                f"more than {MOST_NAMES} parameters are given; /openapi.json shows all",
                parameter=name[:100],
                limit=MOST_NAMES,
            )
    return values
