"""From an HTTP request to what it asks: every kind of body of the API, no image decoded here."""

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Request
from multipart import MultipartError, MultipartParser, parse_options_header

from service.declarations import read
from service.errors import InvalidParameter, MalformedRequest, TooManyImages, UnsupportedBody
from service.output.table import find_format
from service.pipeline.answers import ArraysAnswer, JsonAnswer
from service.pipeline.prepare import ImagesRequest, TensorRequest
from service.pipeline.request import Answer, BodyRequest
from service.pipeline.views import PictureAnswer, StatisticsAnswer
from service.web.context import pipeline_of
from service.web.negotiation import choose_coding, choose_format
from service.web.parameters import path_value, read_query
from service.web.queries import (
    MODEL_NAME,
    FeaturesQuery,
    JsonFeaturesQuery,
    KeptFeaturesQuery,
    RenderQuery,
    StatisticsQuery,
    drawing,
    reduction,
)
from service.web.validation import parse_json

AnyQuery = StatisticsQuery | RenderQuery
Query = TypeVar("Query", StatisticsQuery, JsonFeaturesQuery, FeaturesQuery, RenderQuery)
NPY, JSON, MULTIPART = "application/x-npy", "application/json", "multipart/form-data"
# curl's --data-binary labels whatever it sends as a form; the content decides, not the label.
IMAGE_LABELS = ("", "application/octet-stream", "application/x-www-form-urlencoded")
IMAGE_PART = "image"
# Of a JSON body: its images hold no comma, so these are parameters and layers' names.
MOST_VALUES = 10_000
IMAGES_KEY = "images"


async def read_image(request: Request) -> bytes:
    """The bytes of one image, as the body itself.

    Raises:
        BodyTooLarge, MalformedRequest, UnsupportedBody
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in IMAGE_LABELS and not kind.startswith("image/"):
        raise UnsupportedBody(
            f"a body of type {kind!r} is not taken; send image/* or application/octet-stream"
        )
    if not (body := await request.body()):
        raise MalformedRequest("the body is empty: send the bytes of one image")
    return body


async def read_request(request: Request, kind_of_query: type[Query]) -> BodyRequest:
    """Read path, query and body, and put the pipeline's request together; parsing runs in a thread.

    Raises:
        BodyTooLarge, MalformedRequest, UnsupportedBody, InvalidParameter, NotAcceptable, TooManyImages
    """
    model = path_value(request, "model", MODEL_NAME)
    query = read_query(request, kind_of_query)
    pipeline = pipeline_of(request)
    content_type = request.headers.get("content-type", "")
    body = await request.body()
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        images, query = await pipeline.in_thread(_from_json, body, query, request)
        return ImagesRequest(images=images, **asked(request, model, query))
    if kind == MULTIPART:
        images = await pipeline.in_thread(_from_multipart, body, content_type, pipeline.limits.images)
        return ImagesRequest(images=images, **asked(request, model, query))
    if not body:
        raise MalformedRequest("the body is empty: send the bytes of one image, or see /openapi.json")
    if kind == NPY:
        return TensorRequest(tensor=body, **asked(request, model, query))
    if kind in IMAGE_LABELS or kind.startswith("image/"):
        return ImagesRequest(images=(body,), **asked(request, model, query))
    raise UnsupportedBody(
        f"a body of type {kind!r} is not taken; send image/* or application/octet-stream, "
        f"{MULTIPART} with parts called {IMAGE_PART!r}, {NPY}, or {JSON}"
    )


def asked(request: Request, model: str, query: AnyQuery) -> dict[str, Any]:
    """The fields of a request to the pipeline that come from the query and the headers.

    Raises:
        InvalidParameter, NotAcceptable
    """
    return {
        "model": model,
        "version": query.version,
        "timeout_s": query.timeout_s,
        "answer": _answer(query, request.headers.get("accept")),
        "layers": (_one_layer(query),) if isinstance(query, RenderQuery) else query.layers,
        "reduction": reduction(query),
        "coding": choose_coding(request.headers.get("accept-encoding")),
        "size": query.size,
    }


def _answer(query: AnyQuery, accept: str | None) -> Answer:
    match query:
        case FeaturesQuery():
            return ArraysAnswer(find_format(_format(query, accept)).name, query.compress)
        case JsonFeaturesQuery():
            return JsonAnswer()
        case RenderQuery():
            return PictureAnswer(drawing(query))
        case _:
            return StatisticsAnswer()


def _format(query: AnyQuery, accept: str | None) -> str | None:
    """The format asked for by name, else by `Accept`; one URL of a kept image has one representation."""
    if not isinstance(query, FeaturesQuery):
        return None
    return query.format or (None if isinstance(query, KeptFeaturesQuery) else choose_format(accept))


def _one_layer(query: RenderQuery) -> str:
    if query.layer is None:
        raise InvalidParameter("layer is required: list_layers shows every layer", parameter="layer")
    return query.layer


def _from_json(body: bytes, query: Query, request: Request) -> tuple[tuple[bytes, ...], Query]:
    """`{"images": ["<base64>", ...]}` plus any query parameter that the URL does not hold."""
    content = parse_json(body, MOST_VALUES)
    if not isinstance(content, dict) or not isinstance(content.get(IMAGES_KEY), list):
        raise InvalidParameter('the body must be {"images": ["<base64>", ...]}', parameter=IMAGES_KEY)
    images = content.pop(IMAGES_KEY)
    twice = sorted(content.keys() & request.query_params.keys())
    if twice:
        raise MalformedRequest(f"{twice[0]!r} stands both in the URL and in the body: give it once")
    if not images:
        raise InvalidParameter("images is empty: send at least one", parameter=IMAGES_KEY)
    return tuple(_base64(i, image) for i, image in enumerate(images)), _merged(query, content)


def _merged(query: Query, content: Mapping[str, Any]) -> Query:
    given = read(type(query), content, strict=True)
    return replace(query, **{name: getattr(given, name) for name in content})


def _base64(index: int, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise MalformedRequest(f"images[{index}] is not base64", index=index) from error


def _from_multipart(body: bytes, content_type: str, most: int) -> tuple[bytes, ...]:
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise MalformedRequest("multipart/form-data without a boundary")
    images: list[tuple[str, bytes]] = []
    try:
        limit = len(body) + 1
        parser = MultipartParser(
            io.BytesIO(body), boundary, part_limit=most + 1, spool_limit=limit, memory_limit=limit
        )
        images.extend((part.name, part.raw) for part in parser)
    except MultipartError as error:
        if len(images) > most:
            raise _too_many(most) from error
        raise MalformedRequest("the body is not well-formed multipart/form-data") from error
    return _image_parts(images, most)


def _image_parts(parts: list[tuple[str, bytes]], most: int) -> tuple[bytes, ...]:
    for name, _ in parts:
        if name != IMAGE_PART:
            raise InvalidParameter(
                f"a part is called {name[:100]!r}; images come in parts called {IMAGE_PART!r}, "
                "parameters in the URL",
                parameter=name[:100],
            )
    if not parts:
        raise InvalidParameter(f"no part called {IMAGE_PART!r}", parameter=IMAGE_PART)
    if len(parts) > most:
        raise _too_many(most)
    return tuple(content for _, content in parts)


def _too_many(most: int) -> TooManyImages:
    return TooManyImages(f"more than {most} images were sent in one request", limit=most)
