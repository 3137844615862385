"""Who answers, and whether."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from service import __version__
from service.web.answers import json_response
from service.web.context import readiness_of
from service.web.media import json_answer
from service.web.problems import responses
from service.web.v2.schemas import Live, Ready, ServerMetadata

router = APIRouter(prefix="/v2", tags=["v2"])
# Nothing but what is there: clients ask for what they find here.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "parameters",
    "model_configuration",
    "statistics",
    "model_repository",
)


@router.get(
    "", operation_id="v2_server_metadata", responses=json_answer(ServerMetadata, "Name, version, extensions")
)
async def server_metadata() -> Response:
    """Name, version, and the extensions of the protocol that are there."""
    return json_response({"name": "featuremaps", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live", operation_id="v2_health_live", responses=json_answer(Live, "The process answers"))
async def live() -> Response:
    """The process answers."""
    return json_response({"live": True})


@router.get(
    "/health/ready",
    operation_id="v2_health_ready",
    responses=json_answer(Ready, "It answers") | responses(None, 503),
)
async def ready(request: Request) -> Response:
    """Every model set to load at start has run once or has failed."""
    readiness_of(request).check()
    return json_response({"ready": True})
