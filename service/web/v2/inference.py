"""Inference: named inputs in, named outputs out, as JSON, as bytes, or both."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.errors import MalformedRequest
from service.intake import inflate
from service.pipeline.admission import Permit
from service.web.answers import payload_response
from service.web.context import permit_of, pipeline_of
from service.web.media import BINARY, COMPUTED, json_answer
from service.web.negotiation import OLD_CODINGS, choose_coding
from service.web.parameters import path_value
from service.web.problems import responses
from service.web.queries import MODEL_NAME, VERSION
from service.web.routes.models import ModelName, describe_model
from service.web.v2.models import ANY_VERSION, ONE, VersionNumber
from service.web.v2.outputs import HEAD_LENGTH, OutputsAnswer
from service.web.v2.request import InferenceRequest
from service.web.v2.schemas import InferenceResponse
from service.web.v2.wire import Asked, read_inference

router = APIRouter(prefix="/v2/models", tags=["v2"])
BODY = {
    "parameters": [
        {
            "name": HEAD_LENGTH,
            "in": "header",
            "required": False,
            "description": "Bytes of the JSON, where bytes of inputs follow it; 0 where all is one input",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
            "application/octet-stream": {"schema": BINARY},
        },
    },
}
REFUSALS = (400, 404, 413, 415, 422, 503, 504)
ANSWER = json_answer(InferenceResponse, "JSON, and behind it the bytes of outputs", *COMPUTED)
ANSWER[200]["content"] = {"application/octet-stream": {"schema": BINARY}}
ANSWERS = responses(None, *REFUSALS) | ANSWER


async def describe_version(model: ModelName, version: VersionNumber) -> None:
    """Describe the path of operations that FastAPI does not call."""


@router.post(
    ONE + "/infer",
    operation_id="v2_infer",
    dependencies=[Depends(describe_model)],
    responses=ANSWERS,
    openapi_extra=BODY,
)
async def infer(request: Request) -> Response:
    """Declared outputs, or any layers by name, for named inputs of the version that is served."""
    return await _infer(request, None)


@router.post(
    ANY_VERSION + "/infer",
    operation_id="v2_version_infer",
    dependencies=[Depends(describe_version)],
    responses=ANSWERS,
    openapi_extra=BODY,
)
async def version_infer(request: Request) -> Response:
    """The same of one version."""
    return await _infer(request, path_value(request, "version", VERSION))


async def _infer(request: Request, version: str | None) -> Response:
    model = path_value(request, "model", MODEL_NAME)
    pipeline, permit = pipeline_of(request), permit_of(request)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    lengths = request.headers.getlist(HEAD_LENGTH)
    body = await request.body()
    if len(lengths) > 1:
        raise MalformedRequest(f"{HEAD_LENGTH} is given more than once")
    if coding != "identity":
        most = pipeline.limits.body_bytes
        body = await pipeline.in_thread(inflate.inflate, body, max_bytes=most, take=permit.reserve)
    asked = await pipeline.in_thread(_read, body, lengths[0] if lengths else None, permit)
    answer = await pipeline.answer(
        InferenceRequest(
            model=model,
            version=version,
            answer=OutputsAnswer(),
            coding=choose_coding(request.headers.get("accept-encoding"), OLD_CODINGS),
            timeout_s=asked.timeout_s or pipeline.limits.timeout_s,
            body=body,
            head_bytes=asked.head_bytes,
            id=asked.id,
            tensors=asked.tensors,
            outputs=asked.outputs,
            default=asked.default,
        ),
        permit,
    )
    return payload_response(answer)


def _read(body: bytes, head_length: str | None, permit: Permit) -> Asked:
    asked = read_inference(body, head_length)
    permit.reserve(sum(tensor.nbytes for tensor in (asked.tensors or {}).values()))
    return asked
