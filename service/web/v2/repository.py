"""Which models lie in the repositories; loading and unloading them (Triton's model repository extension)."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from service.engine.catalog import Entry, State
from service.errors import InvalidParameter
from service.web.access import admit_admin
from service.web.context import permit_of, pipeline_of
from service.web.journal import audited
from service.web.problems import responses
from service.web.routes.models import ModelName
from service.web.v2.bodies import optional_body, read_optional
from service.web.v2.schemas import ChangeRequest, IndexRequest, IndexRow

router = APIRouter(prefix="/v2/repository", tags=["v2"])
STATES: Mapping[State, str] = {
    "ready": "READY",
    "loading": "LOADING",
    "unloaded": "UNAVAILABLE",
    "failed": "UNAVAILABLE",
}
DONE: dict[int | str, Any] = {200: {"description": "It is done"}}


@router.post(
    "/index",
    operation_id="v2_repository_index",
    responses=responses(None, 400, 413, 422) | {200: {"model": list[IndexRow]}},
    openapi_extra=optional_body(IndexRequest),
)
async def index(request: Request) -> Response:
    """Every version of every model with its state; `{"ready": true}` leaves out what is not ready."""
    asked = await read_optional(request, IndexRequest)
    entries = pipeline_of(request).catalog.entries.values()
    rows = [row for entry in entries for row in _rows(entry) if row["state"] == "READY" or not asked.ready]
    return Response(orjson.dumps(rows), 200, {"Cache-Control": "no-store"}, "application/json")


@router.post(
    "/models/{model}/load",
    operation_id="v2_repository_load",
    dependencies=[Depends(admit_admin)],
    responses=responses(None, 400, 403, 404, 413, 422, 503) | DONE,
    openapi_extra=optional_body(ChangeRequest),
)
async def load(model: ModelName, request: Request) -> Response:
    """Look for the model's versions anew and load the highest that loads; answers when it is ready."""
    asked = await read_optional(request, ChangeRequest)
    if asked.parameters:
        raise InvalidParameter(
            "models are loaded as they lie on disk: config, file: and other parameters are not taken",
            parameter="parameters",
        )
    permit_of(request).acquire()
    async with audited(request, "load", model) as record:
        record["digest"] = (await pipeline_of(request).models.load(model)).identity.digest
    return Response(None, 200, {"Cache-Control": "no-store"})


@router.post(
    "/models/{model}/unload",
    operation_id="v2_repository_unload",
    dependencies=[Depends(admit_admin)],
    responses=responses(None, 400, 403, 404, 413, 422, 503) | DONE,
    openapi_extra=optional_body(ChangeRequest),
)
async def unload(model: ModelName, request: Request) -> Response:
    """Serve the model no more until it is loaded again; requests under way end as they would have."""
    asked = await read_optional(request, ChangeRequest)
    for name in asked.parameters.keys() - {"unload_dependents"}:
        raise InvalidParameter(f"there is no parameter {name[:100]!r}", parameter="parameters")
    permit_of(request).acquire()
    async with audited(request, "unload", model):
        await pipeline_of(request).models.unload(model)
    return Response(None, 200, {"Cache-Control": "no-store"})


def _rows(entry: Entry) -> Iterable[Mapping[str, str]]:
    """One a version, lowest first; a model without any has one with the reason."""
    if not entry.versions:
        yield {
            "name": entry.name,
            "version": "",
            "state": "UNAVAILABLE",
            "reason": entry.reason or "unloaded",
        }
    for version in reversed(entry.versions):
        state = version.state
        reason = version.reason or ("unloaded" if state == "unloaded" else "")
        yield {"name": entry.name, "version": version.version, "state": STATES[state], "reason": reason}
