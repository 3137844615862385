"""Query parameters: read by pydantic itself, and told to OpenAPI.

FastAPI looks at each field of a query anew for each request, which for ours takes longer than HTTP does.
"""

import re
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request

from service.declarations import Declared, model_of, read, schema_of
from service.errors import InvalidParameter

# No operation takes as many.
MOST_NAMES = 100


def read_query(request: Request, kind: type[Declared]) -> Declared:
    """Read a query as one of the dataclasses of `queries`.

    Raises:
        InvalidParameter: a parameter with one value is given more than once, or does not exist, or is wrong.
    """
    repeatable = {name for name, schema in schema_of(kind).items() if schema.get("type") == "array"}
    return read(kind, _given(request, repeatable))


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


def parameters(kind: type[Declared]) -> list[dict[str, Any]]:
    """The query's parameters as OpenAPI's parameter objects."""
    required = {name for name, field in model_of(kind).model_fields.items() if field.is_required()}
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": {key: value for key, value in told.items() if key != "description"},
            "description": told["description"],
        }
        for name, told in schema_of(kind).items()
    ]


def _given(request: Request, repeatable: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True):
        if name in repeatable:
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
