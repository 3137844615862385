"""Changing what is served: off unless the operator allows it, and then for keys with the scope alone."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import Response

from service.web.access import admit_admin
from service.web.answers import json_response
from service.web.context import permit_of, pipeline_of
from service.web.journal import audited
from service.web.media import BINARY
from service.web.parameters import refuse_parameters
from service.web.problems import responses
from service.web.routes.models import ModelName
from service.web.schemas import ModelSummary, UploadedModel, model_summary

ADMIN_ONLY = [Depends(admit_admin), Depends(refuse_parameters)]
router = APIRouter(prefix="/v1/models", tags=["admin"], dependencies=ADMIN_ONLY)
# Its bodies may be longer than others, since they go to disk as they arrive.
uploads = APIRouter(prefix="/v1/models", tags=["admin"], dependencies=ADMIN_ONLY)
# As Triton counts them: without a leading zero.
VersionName = Annotated[
    str, Path(pattern=r"^[1-9][0-9]{0,17}$", description="A version that is not there yet", examples=["2"])
]
ONNX_FILE = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": BINARY}}},
}


@router.post(
    "/{model}/load",
    operation_id="load_model",
    responses=responses(ModelSummary, 403, 404, 422, 503),
)
async def load_model(model: ModelName, request: Request) -> Response:
    """Look for the model's versions anew and load the highest that loads; what serves goes on until then."""
    permit_of(request).acquire()
    async with audited(request, "load", model) as record:
        record["digest"] = (await pipeline_of(request).models.load(model)).identity.digest
    return _summary(request, model)


@router.post(
    "/{model}/unload",
    operation_id="unload_model",
    responses=responses(ModelSummary, 403, 404, 422, 503),
)
async def unload_model(model: ModelName, request: Request) -> Response:
    """Serve the model no more until it is loaded again; requests under way end as they would have."""
    permit_of(request).acquire()
    async with audited(request, "unload", model):
        await pipeline_of(request).models.unload(model)
    return _summary(request, model)


@uploads.put(
    "/{model}/versions/{version}",
    operation_id="upload_model",
    status_code=201,
    responses=responses(UploadedModel, 400, 403, 409, 413, 415, 422, 503)
    | {201: {"model": UploadedModel, "description": "It is there now; load_model serves it"}},
    openapi_extra=ONNX_FILE,
)
async def upload_model(model: ModelName, version: VersionName, request: Request) -> Response:
    """Keep an ONNX file as a new version of a model, once it has been checked; load_model serves it."""
    permit_of(request).acquire()
    async with audited(request, "upload", f"{model}/{version}") as record:
        uploaded = await pipeline_of(request).uploads.receive(model, version, request.stream())
        record["digest"] = uploaded.digest
    answer = json_response(
        {"model": model, "version": version, "digest": uploaded.digest, "bytes": uploaded.bytes}
    )
    answer.status_code = 201
    answer.headers["Location"] = f"/v1/models/{model}?version={version}"
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _summary(request: Request, model: str) -> Response:
    answer = json_response(model_summary(pipeline_of(request).catalog.entry(model).summary()))
    answer.headers["Cache-Control"] = "no-store"
    return answer
