"""Models and their layers."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.pipeline.answers import file_name
from service.pipeline.filters import encode_filters
from service.web import etags
from service.web.answers import (
    PiecesResponse,
    disposition,
    json_response,
    long_json_response,
    model_headers,
)
from service.web.context import permit_of, pipeline_of
from service.web.media import FILTERS, OF_MODEL, answer, json_answer, not_modified
from service.web.parameters import parameters, read_query, refuse_parameters
from service.web.problems import responses
from service.web.queries import MODEL_NAME, FiltersQuery, LayersQuery, VersionQuery
from service.web.schemas import (
    LayerList,
    ModelDescription,
    ModelList,
    layer_list,
    model_description,
    model_summary,
)

router = APIRouter(prefix="/v1/models", tags=["models"])
ModelName = Annotated[str, Path(pattern=MODEL_NAME, description="Name of a model", examples=["cifar-resnet"])]


async def describe_model(model: ModelName) -> None:
    """Describe the path of operations that FastAPI does not call."""


@router.get(
    "",
    operation_id="list_models",
    responses=responses(None, 422) | json_answer(ModelList, "All of them"),
    dependencies=[Depends(refuse_parameters)],
)
async def list_models(request: Request) -> Response:
    """Every model with its versions and state.

    One that failed says why.
    """
    entries = pipeline_of(request).catalog.entries.values()
    return json_response({"models": [model_summary(entry.summary()) for entry in entries]})


@router.get(
    "/{model}",
    operation_id="get_model",
    responses=responses(None, 404, 422, 503, 504) | json_answer(ModelDescription, "The model", *OF_MODEL),
    openapi_extra={"parameters": parameters(VersionQuery)},
)
async def get_model(model: ModelName, request: Request) -> Response:
    """Inputs, preprocessing, labels, licence, digests and stages of one version of a model."""
    query = read_query(request, VersionQuery)
    loaded = await pipeline_of(request).find(model, query.version, permit_of(request))
    return json_response(model_description(loaded), loaded.identity)


@router.get(
    "/{model}/layers",
    operation_id="list_layers",
    responses=responses(None, 404, 422, 503, 504) | json_answer(LayerList, "The layers", *OF_MODEL),
    openapi_extra={"parameters": parameters(LayersQuery)},
)
async def list_layers(model: ModelName, request: Request) -> Response:
    """Layers with shape, reduction, receptive field and cost.

    It takes the same `layers` and `size` as a request for maps: also its dry run.
    """
    pipeline = pipeline_of(request)
    permit = permit_of(request)
    query = read_query(request, LayersQuery)
    selected = await pipeline.layers(model, query.version, query.layers, query.size, permit)
    permit.model = selected.model.identity
    accepted = request.headers.get("accept-encoding")
    response: Response = await pipeline.in_thread(
        lambda: long_json_response(layer_list(selected), selected.model.identity, accepted)
    )
    permit.add(int(response.headers["content-length"]))
    return response


@router.get(
    "/{model}/filters",
    operation_id="get_filters",
    response_class=Response,
    responses=responses(None, 404, 413, 422, 503, 504)
    | answer("The weights", FILTERS, "ETag", "Content-Disposition", *OF_MODEL)
    | not_modified(*OF_MODEL),
    openapi_extra={"parameters": parameters(FiltersQuery)},
)
async def get_filters(model: ModelName, request: Request) -> Response:
    """Weights of the convolution that made a layer, as arrays or drawn.

    It is found by walking back over bias, normalisation and activation.
    """
    pipeline = pipeline_of(request)
    permit = permit_of(request)
    query = read_query(request, FiltersQuery)
    loaded = await pipeline.find(model, query.version, permit)
    etag = etags.tag(loaded, f"filters {query}", pipeline.runtime)
    headers = etags.cache_headers(request, etag) | model_headers(loaded.identity)
    if etags.matches(request, etag):
        return etags.not_modified(headers)
    permit.acquire()
    most = pipeline.limits.answer_bytes
    encoded = await pipeline.in_thread(encode_filters, loaded, query.layer, query.format, most)
    permit.release()
    permit.add(sum(map(len, encoded.chunks)))
    name = file_name(model, f"{query.layer}-filters", encoded.extension)
    headers["Content-Disposition"] = disposition(name, encoded.media_type)
    return PiecesResponse(encoded.chunks, headers, encoded.media_type)
