"""Small JSON bodies of the protocol, which clients send without telling what they are."""

from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.errors import MalformedRequest
from service.web.door import pipeline_of

Asked = TypeVar("Asked", bound=BaseModel)


async def read_optional(request: Request, kind: type[Asked]) -> Asked:
    """The body as `kind`, whatever its label; an empty one has every default. Parsed in a thread.

    Raises:
        BodyTooLarge, MalformedRequest
        RequestValidationError: a member that does not exist, or a wrong value.
    """
    body = await request.body()
    return await pipeline_of(request).in_thread(_parsed, body, kind) if body else kind()


def optional_body(kind: type[BaseModel]) -> dict[str, Any]:
    """The same, told to OpenAPI."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
    return {"requestBody": {"required": False, "content": content}}


def _parsed(body: bytes, kind: type[Asked]) -> Asked:
    try:
        return kind.model_validate(orjson.loads(body), strict=True)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest("the body is not JSON") from error
    except ValidationError as error:
        found = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors(include_url=False)]
        raise RequestValidationError(found) from error
