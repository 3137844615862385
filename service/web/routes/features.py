"""Feature maps as arrays."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.web.answers import payload_response
from service.web.bodies import Query, read_request
from service.web.context import permit_of, pipeline_of
from service.web.media import ARRAYS, COMPUTED, PICTURES, answer, image_body, json_answer
from service.web.parameters import parameters
from service.web.problems import responses
from service.web.queries import FeaturesQuery, JsonFeaturesQuery, RenderQuery, StatisticsQuery
from service.web.routes.models import describe_model
from service.web.schemas import FeaturesAsJson, Statistics

router = APIRouter(prefix="/v1/models", tags=["feature maps"], dependencies=[Depends(describe_model)])
REFUSALS = (400, 404, 406, 413, 415, 422, 503, 504)


@router.post(
    "/{model}/features",
    operation_id="extract_features",
    response_class=Response,
    responses=responses(None, *REFUSALS) | answer("The maps as arrays", ARRAYS, *COMPUTED),
    openapi_extra=image_body("FeaturesBody") | {"parameters": parameters(FeaturesQuery)},
)
async def extract_features(request: Request) -> Response:
    """Feature maps of any layers as arrays.

    Axes, layout and dtype are those of the uncut graph, batch axis included, images along it as they came.
    What is asked for is done in this order: channels, region, pool or grid, cast. What was done travels with
    the bytes: `__metadata__` in npz, the same text in safetensors and Arrow.
    """
    return await _answer(request, FeaturesQuery)


@router.post(
    "/{model}/features/json",
    operation_id="extract_features_json",
    responses=responses(None, *REFUSALS) | json_answer(FeaturesAsJson, "The maps as numbers", *COMPUTED),
    openapi_extra=image_body("JsonFeaturesBody") | {"parameters": parameters(JsonFeaturesQuery)},
)
async def extract_features_json(request: Request) -> Response:
    """Small feature maps as JSON numbers.

    The answer is capped, since numbers as text are long and slow.
    """
    return await _answer(request, JsonFeaturesQuery)


@router.post(
    "/{model}/statistics",
    operation_id="describe_features",
    responses=responses(None, *REFUSALS) | json_answer(Statistics, "A row a layer", *COMPUTED),
    openapi_extra=image_body("StatisticsBody") | {"parameters": parameters(StatisticsQuery)},
)
async def describe_features(request: Request) -> Response:
    """Minimum, maximum, mean, deviation, sparsity and dead channels of each layer."""
    return await _answer(request, StatisticsQuery)


@router.post(
    "/{model}/render",
    operation_id="render_features",
    response_class=Response,
    responses=responses(None, *REFUSALS)
    | answer("The map as a picture", PICTURES, *COMPUTED, "Featuremaps-Scale"),
    openapi_extra=image_body("RenderBody") | {"parameters": parameters(RenderQuery)},
)
async def render_features(request: Request) -> Response:
    """One layer's feature map of one image as a picture.

    One scale holds for the whole layer; the one used stands in the file and in `Featuremaps-Scale`.
    """
    return await _answer(request, RenderQuery)


async def _answer(request: Request, kind: type[Query]) -> Response:
    asked = await read_request(request, kind)
    return payload_response(await pipeline_of(request).answer(asked, permit_of(request)))
