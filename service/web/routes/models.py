"""Models and their layers."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from service.web.answers import json_response
from service.web.door import pipeline_of
from service.web.problems import responses
from service.web.schemas import (
    MODEL_NAME,
    LayerList,
    LayersQuery,
    ModelDescription,
    ModelList,
    VersionQuery,
    layer_list,
    model_description,
    model_summary,
    sides,
)

router = APIRouter(prefix="/v1/models", tags=["models"])
ModelName = Annotated[str, Path(pattern=MODEL_NAME, description="Name of a model", examples=["cifar-resnet"])]


@router.get("", operation_id="list_models", responses=responses(ModelList))
async def list_models(request: Request) -> Response:
    """Every model with its versions and state; one that failed says why."""
    entries = pipeline_of(request).catalog.entries.values()
    return json_response({"models": [model_summary(entry.summary()) for entry in entries]})


@router.get("/{model}", operation_id="get_model", responses=responses(ModelDescription, 404, 503))
async def get_model(model: ModelName, query: Annotated[VersionQuery, Query()], request: Request) -> Response:
    """Inputs, preprocessing, labels, licence, digests and stages of one version of a model."""
    loaded = await pipeline_of(request).model(model, query.version)
    return json_response(model_description(loaded), loaded.identity)


@router.get("/{model}/layers", operation_id="list_layers", responses=responses(LayerList, 404, 422, 503))
async def list_layers(model: ModelName, query: Annotated[LayersQuery, Query()], request: Request) -> Response:
    """The layers selected, with shape, reduction, receptive field and cost: the dry run of a request."""
    pipeline = pipeline_of(request)
    selected = await pipeline.layers(model, query.version, query.layers, sides(query.size))
    return json_response(layer_list(selected), selected.model.identity)
