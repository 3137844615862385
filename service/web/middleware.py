"""What happens to every request, whatever it asks. Plain ASGI."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, MalformedRequest, UnsupportedBody
from service.web.problems import bug

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
log = logging.getLogger("featuremaps.access")


class RequestContext:
    """Gives each request an id, repeats it in the answer, writes one access line; answers our bugs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope["featuremaps.request_id"] = request_id
        start, status = time.perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            log.info("%s %r: the client left while sending %s", scope["method"], scope["path"], request_id)
        except Exception as error:
            if status:
                raise  # The answer is under way; the server can only close the connection.
            await bug(Request(scope), error)(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - start
            log.info("%s %r %d %.4fs %s", scope["method"], scope["path"], status, seconds, request_id)


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

        await self._app({**scope, "method": "GET"}, receive, send_head)


class BodyLimit:
    """Refuses a body over the limit, by its announced length or while it is still arriving."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        arrived = 0

        async def counted() -> Message:
            nonlocal arrived
            if arrived == 0:
                self._check_headers(headers)
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > self._max_bytes:
                raise self._too_large(arrived)
            return message

        await self._app(scope, counted, send)

    def _check_headers(self, headers: Headers) -> None:
        """Read where the body is first asked for, so that the refusal goes the way of all refusals."""
        length = headers.get("content-length", "0")
        if not length.isdigit():
            raise MalformedRequest("Content-Length is not a number")
        if int(length) > self._max_bytes:
            raise self._too_large(int(length))
        if headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedBody("a request's body is taken as it is: send it without Content-Encoding")

    def _too_large(self, actual: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body holds {actual} bytes or more; at most {self._max_bytes} are taken",
            limit=self._max_bytes,
            actual=actual,
        )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
