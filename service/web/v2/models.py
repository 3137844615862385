"""What the protocol tells of models: what they take and declare, whether they are ready, what was counted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.dtypes import DATATYPE_OF
from service.engine.catalog import Entry
from service.engine.loaded import LoadedModel
from service.errors import NotReady
from service.pipeline.tally import Tally, Total
from service.values import TensorSpec
from service.web.answers import json_response
from service.web.context import permit_of, pipeline_of
from service.web.media import OF_MODEL, json_answer
from service.web.problems import responses
from service.web.queries import VERSION
from service.web.routes.models import ModelName
from service.web.v2.schemas import ModelConfiguration, ModelMetadata, ModelNames, Ready, StatisticsAnswer

router = APIRouter(prefix="/v2/models", tags=["v2"])
VersionNumber = Annotated[str, Path(pattern=VERSION, description="Version of the model", examples=["1"])]
PLATFORM = "onnxruntime_onnx"
ONE, ANY_VERSION = "/{model}", "/{model}/versions/{version}"


@router.get("", operation_id="v2_models", responses=json_answer(ModelNames, "All models"))
async def list_names(request: Request) -> Response:
    """The names of all models."""
    return json_response({"models": list(pipeline_of(request).catalog.entries)})


@router.get(
    "/stats", operation_id="v2_statistics", responses=json_answer(StatisticsAnswer, "What was counted")
)
async def statistics(request: Request) -> Response:
    """What was counted of every version that is loaded."""
    entries = pipeline_of(request).catalog.entries.values()
    return _statistics(request, [model for entry in entries for model in entry.loaded()])


@router.get(
    ONE,
    operation_id="v2_model_metadata",
    responses=json_answer(ModelMetadata, "Inputs and declared outputs", *OF_MODEL)
    | responses(None, 404, 422, 503, 504),
)
async def metadata(model: ModelName, request: Request) -> Response:
    """Inputs and declared outputs of the version that is served."""
    return await _metadata(request, model, None)


@router.get(
    ANY_VERSION,
    operation_id="v2_model_version_metadata",
    responses=json_answer(ModelMetadata, "Inputs and declared outputs", *OF_MODEL)
    | responses(None, 404, 422, 503, 504),
)
async def version_metadata(model: ModelName, version: VersionNumber, request: Request) -> Response:
    """Inputs and declared outputs of one version."""
    return await _metadata(request, model, version)


@router.get(
    ONE + "/ready",
    operation_id="v2_model_ready",
    responses=json_answer(Ready, "It answers", *OF_MODEL) | responses(None, 404, 422, 503, 504),
)
async def ready(model: ModelName, request: Request) -> Response:
    """The model answers; one that is loaded when it is first asked for is loaded now."""
    return await _ready(request, model, None)


@router.get(
    ANY_VERSION + "/ready",
    operation_id="v2_model_version_ready",
    responses=json_answer(Ready, "It answers", *OF_MODEL) | responses(None, 404, 422, 503, 504),
)
async def version_ready(model: ModelName, version: VersionNumber, request: Request) -> Response:
    """This version answers."""
    return await _ready(request, model, version)


@router.get(
    ONE + "/config",
    operation_id="v2_model_configuration",
    responses=json_answer(ModelConfiguration, "As Triton has it", *OF_MODEL)
    | responses(None, 404, 422, 503, 504),
)
async def configuration(model: ModelName, request: Request) -> Response:
    """What load generators need to know of the version that is served."""
    return await _configuration(request, model, None)


@router.get(
    ANY_VERSION + "/config",
    operation_id="v2_model_version_configuration",
    responses=json_answer(ModelConfiguration, "As Triton has it", *OF_MODEL)
    | responses(None, 404, 422, 503, 504),
)
async def version_configuration(model: ModelName, version: VersionNumber, request: Request) -> Response:
    """What load generators need to know of one version."""
    return await _configuration(request, model, version)


@router.get(
    ONE + "/stats",
    operation_id="v2_model_statistics",
    responses=json_answer(StatisticsAnswer, "What was counted") | responses(None, 404, 422, 503),
)
async def model_statistics(model: ModelName, request: Request) -> Response:
    """What was counted of every version of a model that is loaded."""
    return _statistics(request, pipeline_of(request).catalog.entry(model).loaded())


@router.get(
    ANY_VERSION + "/stats",
    operation_id="v2_model_version_statistics",
    responses=json_answer(StatisticsAnswer, "What was counted") | responses(None, 404, 422, 503, 504),
)
async def version_statistics(model: ModelName, version: VersionNumber, request: Request) -> Response:
    """What was counted of one version."""
    return _statistics(request, [await pipeline_of(request).find(model, version, permit_of(request))])


async def _metadata(request: Request, name: str, version: str | None) -> Response:
    pipeline = pipeline_of(request)
    entry, model = pipeline.catalog.entry(name), await pipeline.find(name, version, permit_of(request))
    return json_response(await pipeline.in_thread(_model_metadata, entry, model), model.identity)


def _model_metadata(entry: Entry, model: LoadedModel) -> Mapping[str, Any]:
    return {
        "name": entry.name,
        "versions": entry.summary().versions,
        "platform": PLATFORM,
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": [_tensor(spec) for spec in model.output_specs],
    }


def _tensor(spec: TensorSpec) -> Mapping[str, Any]:
    shape = [-1 if side is None else side for side in spec.shape or ()]
    return {"name": spec.name, "datatype": DATATYPE_OF.get(spec.dtype, spec.dtype), "shape": shape}


async def _ready(request: Request, name: str, version: str | None) -> Response:
    pipeline = pipeline_of(request)
    entry = pipeline.catalog.entry(name)
    if entry.peek(version) is None and entry.is_loading(version):
        raise NotReady(f"model {name!r} is loading", retry_after_s=1)
    model = await pipeline.find(name, version, permit_of(request))
    return json_response({"name": name, "ready": True}, model.identity)


async def _configuration(request: Request, name: str, version: str | None) -> Response:
    pipeline = pipeline_of(request)
    model = await pipeline.find(name, version, permit_of(request))
    most = pipeline.limits.images
    return json_response(await pipeline.in_thread(_model_configuration, model, most), model.identity)


def _model_configuration(model: LoadedModel, most_images: int) -> Mapping[str, Any]:
    specs = (*model.inputs, *model.output_specs)
    has_batch = model.image_input is not None and all(s.shape and s.shape[0] is None for s in specs)
    return {
        "name": model.identity.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": most_images if has_batch else 0,
        "input": [
            {**_configured(spec, has_batch=has_batch), "optional": spec.name in model.constants}
            for spec in model.inputs
        ],
        "output": [_configured(spec, has_batch=has_batch) for spec in model.output_specs],
    }


def _configured(spec: TensorSpec, *, has_batch: bool) -> Mapping[str, Any]:
    told = _tensor(spec)
    datatype = "STRING" if told["datatype"] == "BYTES" else told["datatype"]
    dims = told["shape"][1:] if has_batch else told["shape"]
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims}


def _statistics(request: Request, models: Sequence[LoadedModel]) -> Response:
    tallies = pipeline_of(request).tallies
    names = [(model.identity.name, model.identity.version) for model in models]
    told = [_counted(*name, tallies.of(*name)) for name in names]
    return json_response({"model_stats": told})


def _counted(name: str, version: str, tally: Tally) -> Mapping[str, Any]:
    """As `ModelStatistics`. Answers are not cached by themselves, so that nothing hits or misses."""
    none = Total()
    totals = {"success": tally.succeeded, "fail": tally.failed, **tally.stages}
    return {
        "name": name,
        "version": version,
        "last_inference": tally.last_inference_ms,
        "inference_count": tally.images,
        "execution_count": tally.runs,
        "inference_stats": _durations({**totals, "cache_hit": none, "cache_miss": none}.items()),
        "batch_stats": [
            {"batch_size": size, **_durations((n, t) for n, t in stages.items() if n != "queue")}
            for size, stages in sorted(tally.batches.items())
        ],
        "memory_usage": [],
    }


def _durations(totals: Iterable[tuple[str, Total]]) -> Mapping[str, Any]:
    return {name: {"count": total.count, "ns": round(total.seconds * 1e9)} for name, total in totals}
