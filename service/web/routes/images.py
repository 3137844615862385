"""Images kept for a while, and feature maps one can link to."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.errors import NotReady
from service.pipeline.prepare import KeptImageRequest
from service.web import etags
from service.web.answers import (
    PiecesResponse,
    disposition,
    json_response,
    model_headers,
    payload_response,
)
from service.web.bodies import asked as asked_of
from service.web.bodies import read_image
from service.web.context import caller_of, permit_of, pipeline_of
from service.web.media import (
    ARRAYS,
    COMPUTED,
    KEPT,
    OF_MODEL,
    ONE_IMAGE,
    PICTURES,
    answer,
    json_answer,
    not_modified,
    told_headers,
)
from service.web.parameters import parameters, path_value, read_query, refuse_parameters
from service.web.problems import responses
from service.web.queries import SHA256, KeptFeaturesQuery, KeptRenderQuery, KeptStatisticsQuery
from service.web.schemas import ImageDescription, Statistics, image_description

router = APIRouter(prefix="/v1/images", tags=["images"])
ImageId = Annotated[str, Path(pattern=SHA256, description="SHA-256 of the image's bytes, 64 hex digits")]
# What was stored came from outside: as a document of this origin it may do nothing.
SANDBOX = {"Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'"}
REFUSALS = (400, 404, 413, 422, 503, 504)
AnyKept = KeptFeaturesQuery | KeptRenderQuery | KeptStatisticsQuery


async def describe_image(image_id: ImageId) -> None:
    """Describe the path of operations that FastAPI does not call."""


@router.post(
    "",
    operation_id="create_image",
    status_code=201,
    responses=responses(None, 400, 413, 415, 422, 503, 504)
    | json_answer(ImageDescription, "It was kept already, and is kept for longer now", "Location")
    | {
        201: {"model": ImageDescription, "description": "It is kept now", "headers": told_headers("Location")}
    },
    openapi_extra=ONE_IMAGE,
)
async def create_image(request: Request) -> Response:
    """Keep an image for a while under the SHA-256 of its bytes.

    The same bytes again renew it (200).
    """
    await refuse_parameters(request)
    body = await read_image(request)
    pipeline = pipeline_of(request)
    async with pipeline.bounded(permit_of(request)):
        stored, new = await pipeline.images.create(caller_of(request).name, body)
    answer = json_response(image_description(stored))
    answer.status_code = 201 if new else 200
    answer.headers["Location"] = f"/v1/images/{stored.id}"
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.get(
    "/{image_id}",
    operation_id="get_image",
    dependencies=[Depends(describe_image)],
    response_class=Response,
    responses=responses(None, 404, 422, 503, 504)
    | answer("The image as it was sent", KEPT, "ETag", "Content-Disposition")
    | not_modified(),
)
async def get_image(request: Request) -> Response:
    """The bytes as they were sent, with the detected type."""
    image_id = await _read_id(request)
    pipeline, owner, permit = pipeline_of(request), caller_of(request).name, permit_of(request)
    headers = etags.cache_headers(request, f'"{image_id}"') | SANDBOX
    async with pipeline.bounded(permit):
        record = await pipeline.images.peek(owner, image_id)
        if etags.matches(request, headers["ETag"]):
            return etags.not_modified(headers)
        permit.reserve(record.size_bytes)
        stored = await pipeline.images.get(owner, image_id)
    name = f"{image_id[:16]}.{stored.media_type.partition('/')[2]}"
    headers["Content-Disposition"] = disposition(name, stored.media_type)
    return PiecesResponse((stored.body,), headers, stored.media_type)


@router.delete(
    "/{image_id}",
    operation_id="delete_image",
    dependencies=[Depends(describe_image)],
    status_code=204,
    responses=responses(None, 404, 422, 503, 504) | {204: {"description": "It is gone"}},
)
async def delete_image(request: Request) -> Response:
    """Forget the image."""
    image_id = await _read_id(request)
    pipeline = pipeline_of(request)
    async with pipeline.bounded(permit_of(request)):
        await pipeline.images.delete(caller_of(request).name, image_id)
    return Response(None, 204)


@router.get(
    "/{image_id}/features",
    operation_id="get_image_features",
    dependencies=[Depends(describe_image)],
    response_class=Response,
    responses=responses(None, *REFUSALS)
    | answer("The maps as arrays", ARRAYS, "ETag", *COMPUTED)
    | not_modified(*OF_MODEL),
    openapi_extra={"parameters": parameters(KeptFeaturesQuery)},
)
async def get_image_features(request: Request) -> Response:
    """Feature maps of a kept image as arrays, under one URL.

    As `extract_features`, but `Accept` is ignored: one URL, one representation.
    """
    return await _answer(request, read_query(request, KeptFeaturesQuery))


@router.get(
    "/{image_id}/render",
    operation_id="get_image_picture",
    dependencies=[Depends(describe_image)],
    response_class=Response,
    responses=responses(None, *REFUSALS)
    | answer("The map as a picture", PICTURES, "ETag", *COMPUTED, "Featuremaps-Scale")
    | not_modified(*OF_MODEL),
    openapi_extra={"parameters": parameters(KeptRenderQuery)},
)
async def get_image_picture(request: Request) -> Response:
    """A picture of a kept image's feature map, for `<img src>`.

    As `render_features`.
    """
    return await _answer(request, read_query(request, KeptRenderQuery))


@router.get(
    "/{image_id}/statistics",
    operation_id="get_image_statistics",
    dependencies=[Depends(describe_image)],
    responses=responses(None, *REFUSALS)
    | json_answer(Statistics, "A row a layer", "ETag", *COMPUTED)
    | not_modified(*OF_MODEL),
    openapi_extra={"parameters": parameters(KeptStatisticsQuery)},
)
async def get_image_statistics(request: Request) -> Response:
    """Statistics of a kept image's feature maps.

    As `describe_features`.
    """
    return await _answer(request, read_query(request, KeptStatisticsQuery))


async def _read_id(request: Request) -> str:
    """Read the path of an operation that takes no parameters."""
    await refuse_parameters(request)
    return path_value(request, "image_id", SHA256)


async def _answer(request: Request, query: AnyKept) -> Response:
    """An image that is gone is a 404, what the client still holds a 304; only then anything runs."""
    pipeline, permit, owner = pipeline_of(request), permit_of(request), caller_of(request).name
    image_id = path_value(request, "image_id", SHA256)
    asked = KeptImageRequest(image_id=image_id, owner=owner, **asked_of(request, query.model, query))
    model = await pipeline.find(asked.model, asked.version, permit, asked.timeout_s)
    etags.check_digests(model, query.digest, query.preprocessing_digest)
    async with pipeline.bounded(permit, asked.timeout_s):
        await pipeline.images.peek(owner, image_id)
    etag = etags.tag(model, asked.text_key(), pipeline.runtime)
    pinned = None not in (query.version, query.digest, query.preprocessing_digest)
    headers = etags.cache_headers(request, etag, pinned=pinned)
    if etags.matches(request, etag):
        return etags.not_modified(headers | model_headers(model.identity))
    payload = await pipeline.answer(asked, permit)
    if payload.model != model.identity:
        raise NotReady(f"model {query.model!r} was replaced while it answered: ask again", retry_after_s=1)
    answer = payload_response(payload)
    answer.headers.update(headers)
    return answer
