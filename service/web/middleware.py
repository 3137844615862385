"""What happens to every request, whatever it asks. Plain ASGI."""

import asyncio
import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.web.door import Readiness
from service.web.exchange import EXCHANGE, Exchange, Tell
from service.web.problems import INTERNAL, bug, problem

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Unless an answer says otherwise, as pages do.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}


class RequestContext:
    """Gives each request an id, repeats it in the answer, tells of it when it is over; answers our bugs."""

    def __init__(
        self, app: ASGIApp, readiness: Readiness, tell: Sequence[Tell], resource_policy: str
    ) -> None:
        self._app = app
        self._readiness = readiness
        security = {**SECURITY_HEADERS, "Cross-Origin-Resource-Policy": resource_policy}
        self._security = [(name.lower().encode(), value.encode()) for name, value in security.items()]
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope["featuremaps.request_id"] = request_id
        exchange = scope[EXCHANGE] = Exchange(scope, request_id)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = list(message["headers"])
                told = {name for name, _ in headers}
                headers += [(name, value) for name, value in self._security if name not in told]
                headers.append((b"x-request-id", request_id.encode()))
                if self._readiness.is_draining:
                    MutableHeaders(raw=headers)["Connection"] = "close"
            await send(message)
            exchange.sent_bytes += len(message.get("body", b""))

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # The exchange knows, and what is told of it.
        except (Exception, asyncio.CancelledError) as error:
            if exchange.code == INTERNAL:
                pass  # FastAPI has answered it, and hands it on all the same.
            elif status:
                raise  # The answer is under way; the server can only close the connection.
            else:
                await _failure(Request(scope), error)(scope, receive, send_with_headers)
        finally:
            exchange.end(status)
            for tell in self._tell:
                tell(exchange)


class HeadAsGet:
    """Answers HEAD as GET without the body, wherever there is a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message.get("more_body"):
                    return
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            # What was found out on the way, such as the route.
            scope.update({**as_get, "method": "HEAD"})


def _failure(request: Request, error: BaseException) -> Response:
    if isinstance(error, asyncio.CancelledError):
        # The server cancels the requests that still run when the grace of its shutdown ends.
        return problem(request, NotReady("the service ended before the answer was complete", retry_after_s=1))
    assert isinstance(error, Exception)
    return bug(request, error)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
