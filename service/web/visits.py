"""A request at the door: its body counted as it arrives, its client watched until the answer is sent.

Plain ASGI.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, DeadlineExceeded, MalformedRequest, UnsupportedBody
from service.pipeline.admission import Admission, Visit
from service.values import Limits

WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
# A client that still sends reads the refusal of a body only afterwards.
LONGEST_DRAIN_S = 5.0
VISIT = "featuremaps.visit"


class Visits:
    """Opens a visit for each request, and ends the work of a client that has left."""

    def __init__(self, app: ASGIApp, admission: Admission, limits: Limits) -> None:
        self._app = app
        self._admission = admission
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with self._admission.visit() as visit:
            scope[VISIT] = visit
            body = _Body(scope, receive, visit, self._admission, self._limits)
            await self._serve(scope, send, body)

    async def _serve(self, scope: Scope, send: Send, body: "_Body") -> None:
        answer = _Answer(send, body, self._limits.stall_s)
        work = asyncio.ensure_future(self._app(scope, body.receive, answer.send))
        watch = asyncio.create_task(body.until_left())
        watch.add_done_callback(lambda _: work.cancel())
        try:
            await work
        except asyncio.CancelledError as error:
            if watch.done() and not watch.cancelled():
                raise ClientDisconnect from error
            raise
        finally:
            work.cancel()
            watch.cancel()


class _Body:
    """What arrives: refused over the limit, by its announced length or while it is still arriving."""

    def __init__(
        self, scope: Scope, receive: Receive, visit: Visit, admission: Admission, limits: Limits
    ) -> None:
        self._receive = receive
        self._headers = Headers(scope=scope)
        self._visit = visit
        self._admission = admission
        self._limits = limits
        self._arrived = 0
        self._read = asyncio.Event()
        self._finish_if(scope["method"] in WITHOUT_BODY)

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived, or none was to come."""
        return self._read.is_set()

    @property
    def is_short(self) -> bool:
        """Whether the client told a length within the limit."""
        length = self._headers.get("content-length", "")
        return length.isdigit() and int(length) <= self._limits.body_bytes

    def _finish_if(self, complete: bool) -> None:
        if complete:
            self._read.set()

    async def receive(self) -> Message:
        """The next part, as the application reads it."""
        if self.complete:
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._arrived == 0:
            self._check_headers()
        try:
            async with asyncio.timeout(self._limits.stall_s):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"nothing of the body arrived for {self._limits.stall_s:g} seconds"
            raise DeadlineExceeded(detail, limit=self._limits.stall_s) from error
        size = len(message.get("body", b""))
        self._arrived += size
        if self._arrived > self._limits.body_bytes:
            raise self._too_large(self._arrived)
        self._visit.take(size)
        self._finish_if(not message.get("more_body", False))
        return message

    async def until_left(self) -> None:
        """Returns when the client has closed the connection; before the body is read nobody can tell."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drain(self) -> None:
        """Read and drop what still comes, for a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_DRAIN_S):
                while not self.complete:
                    message = await self._receive()
                    self._finish_if(not message.get("more_body", False))

    def _check_headers(self) -> None:
        """Read where the body is first asked for, so that the refusal goes the way of all refusals."""
        length = self._headers.get("content-length", "0")
        if not length.isdigit():
            raise MalformedRequest("Content-Length is not a number")
        if int(length) > self._limits.body_bytes:
            raise self._too_large(int(length))
        if self._headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedBody("a request's body is taken as it is: send it without Content-Encoding")
        self._admission.check()

    def _too_large(self, actual: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body holds {actual} bytes or more; at most {self._limits.body_bytes} are taken",
            limit=self._limits.body_bytes,
            actual=actual,
        )


class _Answer:
    """What is sent: each part within a time, and after a refusal what the client still sends is read."""

    def __init__(self, send: Send, body: _Body, max_stall_s: float) -> None:
        self._send = send
        self._body = body
        self._max_stall_s = max_stall_s

    async def send(self, message: Message) -> None:
        """One part; a client that takes nothing for too long is given up."""
        if message["type"] == "http.response.start" and not (self._body.complete or self._body.is_short):
            MutableHeaders(scope=message)["Connection"] = "close"
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            async with asyncio.timeout(self._max_stall_s):
                await self._send({**message, "more_body": True} if last else message)
        except TimeoutError as error:
            raise ClientDisconnect from error
        if last:
            await self._body.drain()
            await self._send({"type": "http.response.body", "body": b""})
