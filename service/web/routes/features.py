"""Feature maps as arrays."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.output.table import FORMATS
from service.web.answers import payload_response
from service.web.bodies import read_job
from service.web.door import pipeline_of, visit_of
from service.web.parameters import asked, parameters
from service.web.problems import responses
from service.web.queries import FeaturesQuery, JsonFeaturesQuery, RenderQuery, StatisticsQuery, drawing
from service.web.routes.models import ModelName
from service.web.schemas import FeaturesAsJson, Statistics

router = APIRouter(prefix="/v1/models", tags=["feature maps"])
BINARY = {"type": "string", "format": "binary"}
IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One image, several images, or a ready tensor; the content decides, not the label",
        "content": {
            "application/octet-stream": {"schema": BINARY},
            "image/*": {"schema": BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "array", "items": BINARY}},
                }
            },
            "application/x-npy": {"schema": BINARY},
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "description": "Any query parameter may stand here under its own name",
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "byte"}}
                    },
                }
            },
        },
    }
}
REFUSALS = (400, 404, 406, 413, 415, 422, 503, 504)
PICTURES = {"content": {media: {"schema": BINARY} for media in ("image/png", "image/webp", "image/jpeg")}}
ARRAYS = {"content": {f.media_type: {"schema": BINARY} for f in FORMATS.values()}}


@router.post(
    "/{model}/features",
    operation_id="extract_features",
    response_class=Response,
    responses=responses(None, *REFUSALS) | {200: {"description": "The maps as arrays", **ARRAYS}},
    openapi_extra=IMAGE_BODY | {"parameters": parameters(FeaturesQuery)},
)
async def extract_features(
    model: ModelName, query: Annotated[FeaturesQuery, Depends(asked(FeaturesQuery))], request: Request
) -> Response:
    """Any layers' feature maps as arrays, with exactly the axes of the uncut graph."""
    pipeline = pipeline_of(request)
    job, _ = await read_job(request, model, query, pipeline)
    return payload_response(await pipeline.extract(job, visit_of(request)))


@router.post(
    "/{model}/features/json",
    operation_id="extract_features_json",
    responses=responses(FeaturesAsJson, *REFUSALS),
    openapi_extra=IMAGE_BODY | {"parameters": parameters(JsonFeaturesQuery)},
)
async def extract_features_json(
    model: ModelName, query: Annotated[JsonFeaturesQuery, Depends(asked(JsonFeaturesQuery))], request: Request
) -> Response:
    """Small feature maps as JSON numbers; capped, since numbers as text are long and slow."""
    pipeline = pipeline_of(request)
    job, _ = await read_job(request, model, query, pipeline)
    return payload_response(await pipeline.extract_json(job, visit_of(request)))


@router.post(
    "/{model}/statistics",
    operation_id="describe_features",
    responses=responses(Statistics, *REFUSALS),
    openapi_extra=IMAGE_BODY | {"parameters": parameters(StatisticsQuery)},
)
async def describe_features(
    model: ModelName, query: Annotated[StatisticsQuery, Depends(asked(StatisticsQuery))], request: Request
) -> Response:
    """Minimum, maximum, mean, deviation, sparsity and dead channels of each layer."""
    pipeline = pipeline_of(request)
    job, _ = await read_job(request, model, query, pipeline)
    return payload_response(await pipeline.describe(job, visit_of(request)))


@router.post(
    "/{model}/render",
    operation_id="render_features",
    response_class=Response,
    responses=responses(None, *REFUSALS) | {200: {"description": "The map as a picture", **PICTURES}},
    openapi_extra=IMAGE_BODY | {"parameters": parameters(RenderQuery)},
)
async def render_features(
    model: ModelName, query: Annotated[RenderQuery, Depends(asked(RenderQuery))], request: Request
) -> Response:
    """One layer's feature map of one image, drawn."""
    pipeline = pipeline_of(request)
    job, asked = await read_job(request, model, query, pipeline)
    return payload_response(await pipeline.render(job, drawing(asked), visit_of(request)))
