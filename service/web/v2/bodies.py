"""Small JSON bodies of the protocol, which clients send without telling what they are."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.web.context import pipeline_of
from service.web.validation import parse_json, refused

Asked = TypeVar("Asked", bound=BaseModel)
MOST_VALUES = 256


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
        return kind.model_validate(parse_json(body, MOST_VALUES), strict=True)
    except ValidationError as error:
        raise refused(error, "body") from error
