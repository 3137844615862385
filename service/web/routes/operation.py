"""What operators and probes ask."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from service import __version__
from service.web.answers import json_response
from service.web.context import pipeline_of, readiness_of
from service.web.media import json_answer
from service.web.problems import responses
from service.web.schemas import VersionAnswer

router = APIRouter(tags=["operation"])
METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "As text",
        "content": {"application/openmetrics-text": {"schema": {"type": "string"}}},
    }
}


@router.get("/livez", operation_id="livez", response_class=PlainTextResponse)
async def livez() -> Response:
    """The process answers."""
    return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})


@router.get(
    "/readyz",
    operation_id="readyz",
    response_class=PlainTextResponse,
    responses=responses(None, 503),
)
async def readyz(request: Request) -> Response:
    """Every model set to load at start has run once or has failed."""
    readiness_of(request).check()
    return PlainTextResponse("ready\n", headers={"Cache-Control": "no-store"})


@router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse, responses=METRICS)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus.

    As OpenMetrics where `Accept` asks for it.
    """
    accept = request.headers.get("accept", "")
    text, media_type = await pipeline_of(request).in_thread(request.app.state.metrics.expose, accept)
    return Response(text, headers={"Cache-Control": "no-store"}, media_type=media_type)


@router.get("/v1/version", operation_id="get_version", responses=json_answer(VersionAnswer, "What runs here"))
async def get_version(request: Request) -> Response:
    """Versions, and the limits that a client can run into."""
    return json_response(
        {
            "service": f"featuremaps {__version__}",
            "runtime": pipeline_of(request).runtime,
            "settings": request.app.state.settings,
        }
    )
