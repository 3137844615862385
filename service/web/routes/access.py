"""Whether a caller may come in: what a proxy asks before it answers from its cache."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.declarations import declare
from service.errors import Forbidden
from service.web.context import caller_of
from service.web.keys import INFER, Scope
from service.web.media import told_headers
from service.web.parameters import parameters, read_query
from service.web.problems import responses

router = APIRouter(prefix="/v1/access", tags=["operation"])
MAY: dict[int | str, dict[str, Any]] = {
    204: {"description": "The caller may", "headers": told_headers("Featuremaps-Caller")}
}


@dataclass(frozen=True)
class AccessQuery:
    """What the caller wants to do."""

    scope: Scope = declare(INFER, "What the caller wants to do")


@router.get(
    "",
    operation_id="check_access",
    status_code=204,
    response_class=Response,
    responses=responses(None, 401, 403, 422) | MAY,
    openapi_extra={"parameters": parameters(AccessQuery)},
)
async def check_access(request: Request) -> Response:
    """Whether the caller has a scope.

    It is what a proxy asks before it answers from its cache; the header Featuremaps-Caller holds the name.
    """
    query = read_query(request, AccessQuery)
    caller = caller_of(request)
    if query.scope not in caller.scopes:
        raise Forbidden(f"this caller does not have the scope {query.scope}")
    return Response(None, 204, {"Cache-Control": "no-store", "Featuremaps-Caller": caller.name})
