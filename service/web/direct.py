"""The operations that compute, called without FastAPI's steps between a request and them.

For an early layer those steps were a third of the event loop's time: they match each route twice, look at
each dependency anew and enter four contexts. FastAPI describes these operations all the same, and answers
whatever is not plainly one of them. Plain ASGI.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ServiceError
from service.web import problems
from service.web.queries import MODEL_NAME

PLACEHOLDER = "{model}"


class Direct:
    """Calls the endpoints of routes that take a model by its path, one query and the request."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._operations = [_Operation(route) for route in routes if isinstance(route, APIRoute)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. Below a path of somebody else's the routes are not where they say, and FastAPI finds them."""
        if scope["type"] == "http" and not scope.get("root_path"):
            for operation in self._operations:
                if (model := operation.model_of(scope)) is not None:
                    await operation.answer(model, scope, receive, send)
                    return
        await self._app(scope, receive, send)


class _Operation:
    def __init__(self, route: APIRoute) -> None:
        before, after = map(re.escape, route.path.split(PLACEHOLDER))
        self._path = re.compile(f"{before}({MODEL_NAME.strip('^$')}){after}")
        self._methods = frozenset(route.methods or ())
        self._route = route
        (query,) = route.dependant.dependencies
        assert query.call is not None
        self._read: Callable[[Request], Awaitable[Any]] = query.call

    def model_of(self, scope: Scope) -> str | None:
        """The model's name where a request asks for this operation."""
        found = self._path.fullmatch(scope["path"]) if scope["method"] in self._methods else None
        return found[1] if found else None

    async def answer(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response = await self._route.endpoint(model, await self._read(request), request)
        except (ServiceError, RequestValidationError) as error:
            response = await problems.refusal(request, error)
        await response(scope, receive, send)
