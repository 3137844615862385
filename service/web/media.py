"""What bodies and answers are made of, told to OpenAPI, and the headers beside them."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from service.output.table import FORMATS
from service.web.queries import FeaturesQuery, JsonFeaturesQuery, RenderQuery, StatisticsQuery

Told = dict[str, Any]
# Generators look for `format: binary`, whatever JSON Schema 2020-12 thinks of it.
BINARY: Told = {"type": "string", "format": "binary"}
NO_CONTENT = ("204", "304")
JSON_BODIES: Mapping[str, type] = {
    "FeaturesBody": FeaturesQuery,
    "JsonFeaturesBody": JsonFeaturesQuery,
    "StatisticsBody": StatisticsQuery,
    "RenderBody": RenderQuery,
}
KEPT = tuple(f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif"))
PICTURES = ("image/png", "image/webp", "image/jpeg")
ARRAYS = tuple(f.media_type for f in FORMATS.values())
FILTERS = (*(FORMATS[name].media_type for name in ("npz", "safetensors", "npy")), "image/png", "image/webp")


def _header(description: str, schema: Told, *, always: bool) -> Told:
    return {"description": description, "required": always, "schema": schema}


TEXT: Told = {"type": "string"}
HEADERS: Mapping[str, Told] = {
    "X-Request-Id": _header(
        "The request's id: the client's, where it sent a well-formed one", TEXT, always=True
    ),
    "Retry-After": _header("Seconds after which to try again", {"type": "integer"}, always=False),
    "Server-Timing": _header(
        "What each stage took, milliseconds (W3C Server Timing): decode, preprocess, queue, run, reduce, "
        "encode, compress",
        TEXT,
        always=True,
    ),
    "Featuremaps-Model": _header("`name/version` of the model that answered", TEXT, always=True),
    "Featuremaps-Model-Digest": _header(
        "SHA-256 over the ONNX file and its external data, 64 hex digits", TEXT, always=True
    ),
    "Featuremaps-Scale": _header(
        "Which values the picture's darkest and brightest colours stand for, JSON", TEXT, always=False
    ),
    "Content-Disposition": _header("A file name to save the answer under", TEXT, always=True),
    "ETag": _header(
        "For `If-None-Match`: what decides the answer, known before it is computed", TEXT, always=True
    ),
    "Featuremaps-Caller": _header("The name of the caller's key; empty without keys", TEXT, always=True),
    "WWW-Authenticate": _header("How a key is sent: Bearer", TEXT, always=True),
    "Location": _header(
        "Where it is from now on", {"type": "string", "format": "uri-reference"}, always=True
    ),
}
ON_EVERY_ANSWER = ("X-Request-Id",)
ON_REFUSALS: Mapping[str, tuple[str, ...]] = {
    "401": ("WWW-Authenticate",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}
OF_MODEL = ("Featuremaps-Model", "Featuremaps-Model-Digest")
COMPUTED = (*OF_MODEL, "Server-Timing", "Content-Disposition")


def told_headers(*names: str) -> Told:
    """Headers of an answer by reference."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def answer(description: str, media_types: tuple[str, ...], *headers: str) -> dict[int | str, Told]:
    """A 200 of bytes in one of some types."""
    content = {media_type: {"schema": BINARY} for media_type in media_types}
    return {200: {"description": description, "content": content, "headers": told_headers(*headers)}}


def json_answer(kind: type[BaseModel], description: str, *headers: str) -> dict[int | str, Told]:
    """A 200 of JSON."""
    return {200: {"model": kind, "description": description, "headers": told_headers(*headers)}}


def not_modified(*headers: str) -> dict[int | str, Told]:
    """A 304, where `If-None-Match` may stand in the request."""
    told = {"description": "What the client holds is still right", "headers": told_headers("ETag", *headers)}
    return {304: told}


def image_body(json_body: str) -> Told:
    """One image or several in any of the ways that they are taken; `json_body` is a name of `JSON_BODIES`."""
    parts = {"type": "array", "minItems": 1, "items": BINARY, "description": "One part an image"}
    form = {
        "title": "ImagesForm",
        "description": "Images as the parts of a form",
        "type": "object",
        "required": ["image"],
        "properties": {"image": parts},
    }
    return {
        "requestBody": {
            "required": True,
            "description": "One image, several images, or a ready tensor; the content decides, not the label",
            "content": {
                "application/octet-stream": {"schema": BINARY},
                "image/*": {"schema": BINARY},
                "multipart/form-data": {"schema": form},
                "application/x-npy": {"schema": BINARY},
                "application/json": {"schema": {"$ref": f"#/components/schemas/{json_body}"}},
            },
        }
    }


ONE_IMAGE: Told = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image; the content decides its type, not the label",
        "content": {"application/octet-stream": {"schema": BINARY}, "image/*": {"schema": BINARY}},
    }
}
