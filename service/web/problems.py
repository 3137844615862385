"""The one table from error class to HTTP status, and the one shape of every refusal (RFC 9457)."""

import http
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ExceptionHandler

from service import errors
from service.errors import ServiceError
from service.web.context import RequestContext
from service.web.validation import name_of, words_of

PROBLEM_TYPE = "application/problem+json"
INTERNAL = "internal"
STATUS: dict[type[ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.OutputNotFound: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.RouteNotFound: 404,
    errors.ModelNotFound: 404,
    errors.VersionNotFound: 404,
    errors.LayerNotFound: 404,
    errors.ImageNotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.NotAcceptable: 406,
    errors.VersionExists: 409,
    errors.BodyTooLarge: 413,
    errors.ImageTooLarge: 413,
    errors.TooManyImages: 413,
    errors.AnswerTooLarge: 413,
    errors.UnsupportedBody: 415,
    errors.UnsupportedCoding: 415,
    errors.UnsupportedImage: 415,
    errors.InvalidParameter: 422,
    errors.ImageNotDecodable: 422,
    errors.ShapeMismatch: 422,
    errors.NotCombinable: 422,
    errors.NonFinite: 422,
    errors.OutOfRange: 422,
    errors.NameNotStorable: 422,
    errors.ModelNeedsConstants: 422,
    errors.ImagesNotTaken: 422,
    errors.NotDrawable: 422,
    errors.NoFilters: 422,
    errors.InvalidModel: 422,
    errors.RateLimited: 429,
    errors.StoreUnavailable: 503,
    errors.Overloaded: 503,
    errors.NotReady: 503,
    errors.DeadlineExceeded: 504,
    errors.ModelFailed: 503,
    errors.RepositoryNotWritable: 503,
}
PATH_PARAMETER = re.compile(r"\{[^}]*\}")
CODES = (*sorted(error.code for error in STATUS), INTERNAL)
log = logging.getLogger("featuremaps.web")


def responses(answer: type[BaseModel] | None, *refusals: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: its answer's schema, and the refusals that it can give."""
    table: dict[int | str, dict[str, Any]] = {200: {"model": answer}} if answer else {}
    problem_schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for status in refusals:
        phrase = http.HTTPStatus(status).phrase
        table[status] = {"description": phrase, "content": {PROBLEM_TYPE: problem_schema}}
    return table


def problem(request: Request, error: ServiceError) -> Response:
    """The problem document of one of our errors."""
    status = STATUS[type(error)]
    extensions = {k: v for k, v in error.extensions.items() if k != "retry_after_s"}
    headers = {}
    if (retry_after_s := error.extensions.get("retry_after_s")) is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.UnsupportedCoding):
        # What it would have taken (RFC 9110, 15.5.16).
        headers["Accept-Encoding"] = ", ".join(error.extensions["allowed"])
    return _document(request, status, error.code, error.title, error.detail, extensions, headers)


def _document(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    extensions: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Response:
    # What stands in front of the service refuses in the same words, and has no context.
    context: RequestContext | None = request.scope.get("state", {}).get("context")
    if context is not None:
        context.code = code
    content = {
        "type": f"urn:featuremaps:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
        "code": code,
        "request_id": context.request_id if context is not None else "",
        # Clients of the v2 protocol read this member.
        "error": detail,
        **extensions,
    }
    body = orjson.dumps(content, default=str, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status, {"Cache-Control": "no-store", **headers}, media_type=PROBLEM_TYPE)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    if error.__cause__ is not None:
        # A library's text can hold paths and even passwords, so only debugging shows it.
        log.info("%s: %s (%s)", error.code, error.detail, type(error.__cause__).__name__)
        log.debug("%s", error.code, exc_info=error.__cause__)
    return problem(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parameter = name_of(first["loc"][1:] or first["loc"])
    detail = f"{parameter}: {words_of(first)}"
    if first["type"] == "extra_forbidden":
        detail = f"there is no parameter {parameter!r}; /openapi.json shows all"
    return problem(request, errors.InvalidParameter(detail, parameter=parameter))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router's own refusals."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        answer = problem(
            request,
            errors.MethodNotAllowed(f"{request.method} is not for {path}; allowed: {allowed}"),
        )
        answer.headers["Allow"] = allowed
        return answer
    if error.status_code == 404:
        return problem(
            request,
            errors.RouteNotFound(f"there is nothing at {path}; /openapi.json shows what is"),
        )
    return problem(request, errors.MalformedRequest("the request cannot be parsed"))


def _allowed(request: Request) -> list[str]:
    """The methods of every operation at this address; the router itself tells those of the first one."""
    methods: set[str] = set()
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(PATH_PARAMETER.sub("[^/]+", template), request.url.path):
            methods |= {method.upper() for method in operations}
    # What the document leaves out, such as itself and pages, can only be read.
    methods = methods or {"GET"}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def bug(request: Request, error: Exception) -> Response:
    """A 500 tells nothing but the request id."""
    log.exception("a bug of ours", exc_info=error)
    return _document(request, 500, INTERNAL, "A bug of ours", "the log holds more", {}, {})


# Every refusal, the framework's own included, is answered with a problem document.
HANDLERS: Mapping[Any, ExceptionHandler] = {
    ServiceError: _on_service_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_exception,
}
