"""What happens to every request, whatever it asks. Plain ASGI."""

import asyncio
import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.pipeline.admission import Admission
from service.web.context import Readiness, RequestContext, Tell
from service.web.problems import bug, problem

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# Unless an answer says otherwise, as pages do.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}


class RequestLifecycle:
    """Open a context for each request, complete its answer's headers, and tell of it at its end.

    Answer what no route answers: bugs of ours, and requests that are cut off when the service shuts down.
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        readiness: Readiness,
        tell: Sequence[Tell],
        resource_policy: str,
    ) -> None:
        self._app = app
        self._admission = admission
        self._readiness = readiness
        security = {**SECURITY_HEADERS, "Cross-Origin-Resource-Policy": resource_policy}
        self._security = [(name.lower().encode(), value.encode()) for name, value in security.items()]
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._admission.permit() as permit:
            context = RequestContext(scope, _request_id(Headers(scope=scope)), permit)
            try:
                await self._answer(context, receive, self._counting(context, send))
            finally:
                context.end()
                for tell in self._tell:
                    tell(context)

    def _counting(self, context: RequestContext, send: Send) -> Send:
        """Send with the headers of every answer, and note in the context what was sent."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = message["headers"] = list(message["headers"])
                told = {name for name, _ in headers}
                headers += [(name, value) for name, value in self._security if name not in told]
                headers.append((b"x-request-id", context.request_id.encode()))
                if self._readiness.is_draining:
                    MutableHeaders(raw=headers)["Connection"] = "close"
            await send(message)
            context.sent_bytes += len(message.get("body", b""))

        return send_with_headers

    async def _answer(self, context: RequestContext, receive: Receive, send: Send) -> None:
        request = Request(context.scope)
        try:
            await self._app(context.scope, receive, send)
        except ClientDisconnect:
            context.disconnect()
        except asyncio.CancelledError:
            if context.status or not self._readiness.is_draining:
                raise
            ended = NotReady("the service ended before this request did: send it elsewhere", retry_after_s=1)
            await problem(request, ended)(context.scope, receive, send)
        except Exception as error:
            if context.status:
                raise  # The answer is under way; the server can only close the connection.
            await bug(request, error)(context.scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET without the body, wherever there is a GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["method"] != "HEAD":
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


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
