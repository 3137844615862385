"""The OpenAPI document: what FastAPI derives, and what it cannot know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.web.problems import CODES
from service.web.schemas import Problem

CODE_SCHEMA = {"title": "ProblemCode", "type": "string", "enum": list(CODES)}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document; problems stand once, with the enum of their codes."""
    content = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    schemas = content["components"]["schemas"]
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    problem["properties"]["code"] = {"$ref": "#/components/schemas/ProblemCode"}
    schemas |= {"Problem": problem, "ProblemCode": CODE_SCHEMA}
    # FastAPI's own shape of a 422, which this service never sends.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path in content["paths"].values():
        for operation in path.values():
            _without_foreign_422(operation["responses"])
    return content


def install(app: FastAPI) -> None:
    """Make the document once and serve it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _without_foreign_422(responses: dict[str, Any]) -> None:
    schema = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]
