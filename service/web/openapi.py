"""The OpenAPI document: what FastAPI derives, and what it cannot know.

It is made for those who generate clients from it: enumerations stand once under their names, bytes are
`format: binary`, each status of each operation is declared with its schema and headers.
"""

from collections.abc import Mapping
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service import parameters, values
from service.declarations import STYLES, model_of, without_null
from service.engine.catalog import State
from service.web import keys, schemas
from service.web.access import OPEN_PATHS
from service.web.media import HEADERS, JSON_BODIES, NO_CONTENT, ON_EVERY_ANSWER, ON_REFUSALS, told_headers
from service.web.problems import CODES, PROBLEM_TYPE, STATUS, responses
from service.web.v2.schemas import ChangeRequest, Datatype, IndexRequest, InferenceRequest, RepositoryState

Schema = dict[str, Any]
SUMMARY = "Any layer's feature maps of any ONNX CNN, computing no more of the network than they need."
DESCRIPTION = """\
A *model* is an ONNX CNN with a version and a digest, a *layer* one named tensor of its graph, a *feature
map* that layer's value for an image, a *picture* a feature map drawn. `list_layers` shows what to ask for.

An answer tells what made it in its headers; a refusal is a problem document (RFC 9457) with a stable `code`.
"""
LICENCE = {"name": "Apache License 2.0", "identifier": "Apache-2.0"}
SERVERS = [{"url": "/", "description": "The service that this document comes from"}]
TAGS = [
    {"name": "models", "description": "Which models there are, their layers and what these cost"},
    {
        "name": "feature maps",
        "description": "Feature maps of images sent along, as arrays, numbers and pictures",
    },
    {"name": "images", "description": "Images kept for a while, whose feature maps have URLs of their own"},
    {"name": "admin", "description": "Changing which models there are, where the operator allows it"},
    {"name": "operation", "description": "What operators and probes ask"},
    {"name": "v2", "description": "The Open Inference Protocol, as clients of Triton and KServe speak it"},
]
SECURITY = {
    "bearerAuth": {
        "type": "http",
        "scheme": "bearer",
        "description": "A key, where the operator asks for one; `Authorization: Bearer <key>`",
    }
}
# Enumerations by their names in clients, with what they choose.
ENUMS: Mapping[str, tuple[Any, str]] = {
    "ArrayFormatName": (parameters.FormatName, "How arrays are written"),
    "Color": (values.Color, "Which channels a network sees, in their order"),
    "Combine": (parameters.Combine, "How the channels of a heatmap become one"),
    "Compress": (parameters.Compress, "Whether the members of an npz file are compressed"),
    "Datatype": (Datatype, "Type of a tensor's values, by the v2 protocol's names; BYTES are texts"),
    "DtypeChoice": (parameters.DtypeChoice, "Type of the values sent; native is the graph's own"),
    "FieldStatus": (values.FieldStatus, "How far a receptive field is known"),
    "SizeSource": (values.SizeSource, "Where the size that is served comes from"),
    "FilterFormat": (parameters.FilterFormat, "How filters are written or drawn"),
    "Fit": (values.Fit, "How a photograph becomes as large as the network's input"),
    "Interpolation": (values.Interpolation, "How a photograph is resized, by Pillow's names"),
    "Layout": (values.Layout, "The order of a tensor's axes"),
    "ModelState": (State, "Whether a model can be asked"),
    "Normalize": (parameters.Normalize, "What one scale of a picture holds for"),
    "PadAt": (values.PadAt, "Where a letterboxed photograph lies"),
    "PictureFormat": (parameters.PictureFormat, "How pictures are written"),
    "Pool": (parameters.Pool, "What is taken over rows and columns; gem is the generalised mean with p = 3"),
    "PreprocessingSource": (schemas.PreprocessingSource, "Whether the model says how it is fed"),
    "Provider": (schemas.Provider, "What runs the network"),
    "RepositoryState": (RepositoryState, "Whether a version can be asked"),
    "Scope": (keys.Scope, "What a key allows"),
    "Style": (parameters.Style, "How a feature map is drawn"),
}
# What a caller can meet anywhere, where the operator asks for keys or sets rates.
ANYWHERE = (401, 429)
NAMED = {get_args(alias): name for name, (alias, _) in ENUMS.items()} | {CODES: "ProblemCode"}

CODE: Schema = {
    "title": "ProblemCode",
    "description": "Which refusal it is; it ends the `type`",
    "type": "string",
    "enum": list(CODES),
}
# One grey pixel, so that the example can be sent as it is.
TINY_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="

# Bodies that the framework does not read, so it does not know of them.
READ_BY_US = (InferenceRequest, IndexRequest, ChangeRequest)


def document(app: FastAPI) -> Schema:
    """The whole document; problems and enumerations stand once."""
    told = get_openapi(
        title=app.title,
        version=app.version,
        summary=SUMMARY,
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        servers=SERVERS,
        license_info=LICENCE,
    )
    components = told["components"]
    # FastAPI's own shape of a 422, which this service never sends.
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"] |= {"Problem": _problem(), **{name: _body(name) for name in JSON_BODIES}}
    for kind in READ_BY_US:
        schema = _schema(kind)
        components["schemas"] |= {**schema.pop("$defs", {}), kind.__name__: schema}
    for path, operations in told["paths"].items():
        for operation in operations.values():
            _complete(operation, needs_key=path not in OPEN_PATHS)
            components["schemas"] |= _taken_out(operation.get("requestBody", {}).get("content", {}))
    content: Schema = _tidied(told)
    content["components"]["schemas"] |= {name: _enum(name) for name in ENUMS} | {"ProblemCode": CODE}
    content["components"]["schemas"] = dict(sorted(content["components"]["schemas"].items()))
    content["components"] |= {"headers": dict(HEADERS), "securitySchemes": SECURITY}
    # Either nothing or a key: whether one is needed is the operator's choice.
    return content | {"security": [{}, {"bearerAuth": []}]}


def install(app: FastAPI) -> None:
    """Make the document once and serve it."""

    def openapi() -> Schema:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _problem() -> Schema:
    schema = without_null(_schema(schemas.Problem))
    schema["properties"]["code"] |= {"enum": list(CODES)}
    return schema


def _body(name: str) -> Schema:
    """A JSON body: images in base64, and beside them what could stand in the query."""
    schema = _schema(model_of(JSON_BODIES[name]))
    images = {
        "type": "array",
        "minItems": 1,
        "items": {"type": "string", "format": "byte"},
        "description": "Images in base64 (RFC 4648, 4), each as the file that it is",
        "examples": [[TINY_PNG]],
    }
    return schema | {
        "title": name,
        "description": "Images, and any parameter of the query under its own name",
        "properties": {"images": images, **schema["properties"]},
        "required": ["images"],
    }


def _enum(name: str) -> Schema:
    alias, description = ENUMS[name]
    return {"title": name, "description": description, "type": "string", "enum": list(get_args(alias))}


def _complete(operation: Schema, *, needs_key: bool) -> None:
    """Name the operation by its first sentence, and declare the headers and refusals of each answer."""
    first, _, rest = operation["description"].partition("\n")
    operation["summary"] = first.removesuffix(".")
    operation["description"] = rest.strip() or first
    answers = operation["responses"]
    if answers.get("422", {}).get("content", {}).keys() == {"application/json"}:
        del answers["422"]  # FastAPI's own
    if needs_key:
        answers |= {str(status): told for status, told in responses(None, *ANYWHERE).items()}
    else:
        operation["security"] = []
    operation["responses"] = {status: _answer(status, answers[status]) for status in sorted(answers)}


def _taken_out(content: Schema) -> Schema:
    """The schemas of bodies by name, each replaced by a reference: generators name what is a component."""
    found = {}
    for told in content.values():
        if title := told["schema"].get("title"):
            found[title], told["schema"] = told["schema"], {"$ref": f"#/components/schemas/{title}"}
    return found


def _answer(status: str, told: Schema) -> Schema:
    """An answer with its headers; a refusal tells all its codes."""
    headers = told_headers(*ON_EVERY_ANSWER)
    if PROBLEM_TYPE in told.get("content", {}):
        headers |= told_headers(*ON_REFUSALS.get(status, ()))
        told = told | {"description": _told(int(status))}
    if status in NO_CONTENT:
        told = {key: value for key, value in told.items() if key != "content"}
    return told | {"headers": headers | told.get("headers", {})}


def _told(status: int) -> str:
    """The refusals of a status."""
    found = {error.code: error.title for error, number in STATUS.items() if number == status}
    return "; ".join(f"`{code}`: {title}" for code, title in sorted(found.items()))


def _schema(kind: type[BaseModel]) -> Schema:
    return kind.model_json_schema(ref_template="#/components/schemas/{model}")


def _tidied(node: Any) -> Any:
    """The same with references for enumerations, and without titles that only repeat a name."""
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: value for key, value in node.items() if key != STYLES}
    if name := _enum_name(node):
        kept = {key: value for key, value in node.items() if key not in ("enum", "type", "title")}
        node = {"$ref": f"#/components/schemas/{name}", **kept}
    if "$ref" in node and len(node) > 1:
        # What stands beside a reference is lost on some generators.
        node = {"allOf": [{"$ref": node["$ref"]}], **{k: v for k, v in node.items() if k != "$ref"}}
    if "in" in node and "schema" in node:
        node = _parameter(node)
    return {key: _members(value) if key == "properties" else _tidied(value) for key, value in node.items()}


def _parameter(node: Schema) -> Schema:
    """A parameter of named values is a reference alone: with a default beside it generators lose its type."""
    schema = _untitled(node["schema"])
    if _enum_name(schema) and "default" in schema:
        told = f"{node['description']} (`{schema['default']}` without it)"
        schema = {key: value for key, value in schema.items() if key != "default"}
        node = node | {"description": told}
    if node["required"] and "examples" in schema:
        # What a form to try the operation begins with.
        node = node | {"example": schema["examples"][0]}
    return node | {"schema": schema}


def _enum_name(node: Schema) -> str | None:
    listed = node.get("enum")
    return NAMED.get(tuple(listed)) if isinstance(listed, list) else None


def _members(properties: Mapping[str, Any]) -> Schema:
    return {name: _tidied(_untitled(told)) for name, told in properties.items()}


def _untitled(schema: Mapping[str, Any]) -> Schema:
    return {key: value for key, value in schema.items() if key != "title"}
