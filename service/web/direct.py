"""The operations that compute, called without FastAPI's steps between a request and them.

For an early layer those steps were a third of the event loop's time: they match each route twice, look at
each dependency anew and enter four contexts. FastAPI describes these operations all the same, and answers
whatever is not plainly one of them. Plain ASGI.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.web import problems
from service.web.queries import MODEL_NAME, SHA256, VERSION

PLACEHOLDER = re.compile(r"\{(\w+)\}")
PATTERNS = {
    name: pattern.strip("^$")
    for name, pattern in {"model": MODEL_NAME, "version": VERSION, "image_id": SHA256}.items()
}


class Direct:
    """Calls endpoints that take what their path names, what is read of the request, and the request."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._operations = [_Operation(route) for route in routes if isinstance(route, APIRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Below a path of somebody else's the routes are not where they say, and FastAPI finds them."""
        if scope["type"] == "http" and not scope.get("root_path"):
            for operation in self._operations:
                if (named := operation.named_by(scope)) is not None:
                    await operation.answer(named, scope, receive, send)
                    return
        await self._app(scope, receive, send)


class _Operation:
    def __init__(self, route: APIRoute) -> None:
        self._path = re.compile(
            PLACEHOLDER.sub(lambda name: f"(?P<{name[1]}>{PATTERNS[name[1]]})", route.path)
        )
        self._methods = frozenset(route.methods or ())
        self._route = route
        # Each reads something of the request; those without a name only refuse.
        self._readers = [(one.name, one.call) for one in route.dependant.dependencies if one.call]

    def named_by(self, scope: Scope) -> Mapping[str, str] | None:
        """What the path names, where a request asks for this operation."""
        found = self._path.fullmatch(scope["path"]) if scope["method"] in self._methods else None
        return found.groupdict() if found else None

    async def answer(self, named: Mapping[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await self._route.endpoint(**named, **await self._read(request), request=request)
        except (ServiceError, RequestValidationError) as error:
            response = await problems.refusal(request, error)
        await response(scope, receive, send)

    async def _read(self, request: Request) -> Mapping[str, Any]:
        found = {name: await read(request) for name, read in self._readers}
        return {name: value for name, value in found.items() if name}
