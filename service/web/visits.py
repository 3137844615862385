"""A request at the door: its body counted as it arrives, its client watched until the answer is sent.

Plain ASGI.
"""

import asyncio
from contextlib import nullcontext, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodyTooLarge,
    DeadlineExceeded,
    MalformedRequest,
    Overloaded,
    ServiceError,
    UnsupportedCoding,
)
from service.pipeline.admission import Admission, Permit
from service.values import Limits
from service.web.exchange import LeftWhile, exchange_of
from service.web.problems import problem

WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
# A client that still sends reads the refusal of a body only afterwards, so the rest of the body is read and
# dropped. Both limits are needed: in 5 s a fast client sends more than 10 GB over loopback.
LONGEST_DRAIN_S = 5.0
MOST_DRAINED_BYTES = 64 << 20
# Of a body, in the time in which a client may do nothing: one that drips would hold what it sent without end.
LEAST_BYTES = 16 * 1024
VISIT = "featuremaps.visit"
# Set by a route that keeps nothing of a body in memory: how many bytes it takes instead of `body_bytes`.
STREAMED_BYTES = "featuremaps.streamed_bytes"
# Set in the scope by a route that undoes these content codings of its body.
CODINGS = "featuremaps.codings"


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
        with self._admission.permit() as permit:
            scope[VISIT] = exchange_of(scope).permit = permit
            body = _Body(scope, receive, permit, self._limits)
            await self._serve(scope, send, body)

    async def _serve(self, scope: Scope, send: Send, body: "_Body") -> None:
        answer = _Answer(send, body)
        try:
            if not body.complete:
                self._admission.check()
            await self._work(scope, body, answer)
        except ClientDisconnect:
            exchange_of(scope).left_while = _left_while(scope[VISIT], body, answer)
            raise
        except (Overloaded, DeadlineExceeded) as error:
            # Not by the application: refusing has to be cheap when everybody comes.
            await _tell(error, self._limits, scope, body, answer)

    async def _work(self, scope: Scope, body: "_Body", answer: "_Answer") -> None:
        # Without a time of its own: it is over when the client has left, or does nothing for too long.
        work = asyncio.timeout(None)
        patience = body.patience = answer.patience = _Patience(self._limits.stall_s, work)
        watch = asyncio.create_task(body.until_left())
        watch.add_done_callback(lambda _: patience.give_up())
        try:
            async with work:
                await self._app(scope, body.receive, answer.send)
        except TimeoutError as error:
            if not work.expired():
                raise
            if patience.is_over and not answer.has_begun:
                detail = (
                    f"less than {LEAST_BYTES} bytes of the body arrived in {self._limits.stall_s:g} seconds"
                )
                raise DeadlineExceeded(detail, limit=self._limits.stall_s) from error
            raise ClientDisconnect from error
        finally:
            exchange_of(scope).received_bytes = body.arrived
            patience.end()
            watch.cancel()


async def refuse(
    error: ServiceError, permit: Permit, limits: Limits, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer before the application is asked; what the client still sends is read for a while and dropped."""
    body = _Body(scope, receive, permit, limits)
    await _tell(error, limits, scope, body, _Answer(send, body))


async def _tell(error: ServiceError, limits: Limits, scope: Scope, body: "_Body", answer: "_Answer") -> None:
    """Answer with an error; a client that takes nothing of it is given up.

    Raises:
        ClientDisconnect
    """
    try:
        async with asyncio.timeout(limits.stall_s + LONGEST_DRAIN_S):
            await problem(Request(scope), error)(scope, body.receive, answer.send)
    except TimeoutError as late:
        exchange_of(scope).left_while = "sending_answer"
        raise ClientDisconnect from late


class _Patience:
    """Ends the work for a client that sends or takes too little for too long; one timer serves all its parts.

    Only the time counts in which it is waited for, since what `renew` was last called for.
    """

    def __init__(self, stall_s: float, work: asyncio.Timeout) -> None:
        self.is_over = False
        self._has_ended = False
        self._stall_s = stall_s
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._waited_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._since = self._loop.time() - self._waited_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._stall_s - self._waited_s, self._look)

    def __exit__(self, *_: object) -> None:
        if self._since is not None:
            self._waited_s = self._loop.time() - self._since
            self._since = None

    def renew(self) -> None:
        """The client did enough for another while."""
        self._waited_s = 0.0

    def end(self) -> None:
        """The request is over."""
        self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._stall_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.is_over = True
            self.give_up()

    def give_up(self) -> None:
        """End the work, if it has not ended yet."""
        if not (self._has_ended or self._work.expired()):
            self._work.reschedule(self._loop.time())


class _Body:
    """What arrives: refused over the limit, by its announced length or while it is still arriving."""

    patience: _Patience | None = None

    def __init__(self, scope: Scope, receive: Receive, permit: Permit, limits: Limits) -> None:
        self._receive = receive
        self._scope = scope
        self._headers = Headers(scope=scope)
        self._permit = permit
        self._limits = limits
        self.arrived = self._counted = 0
        self.is_cut_off = False
        self._read = asyncio.Event()
        self._finish_if(scope["method"] in WITHOUT_BODY)

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived, or none was to come."""
        return self._read.is_set()

    @property
    def will_come(self) -> bool:
        """Whether the rest is sent for sure and is short, so that the connection can be used again."""
        length = self._headers.get("content-length", "")
        return not self._is_held_back and length.isdigit() and int(length) <= self._limits.body_bytes

    @property
    def _is_held_back(self) -> bool:
        """Whether the client sends nothing before it is told to (RFC 9110, 10.1.1)."""
        return self.arrived == 0 and "expect" in self._headers

    @property
    def _largest(self) -> int:
        largest: int = self._scope.get(STREAMED_BYTES, self._limits.body_bytes)
        return largest

    def _finish_if(self, complete: bool) -> None:
        if complete:
            self._read.set()

    async def receive(self) -> Message:
        """The next part, as the application reads it."""
        if self.complete:
            return {"type": "http.request", "body": b"", "more_body": False}
        if self.arrived == 0:
            self._check_headers()
        with self.patience or nullcontext():
            message = await self._receive()
        size = len(message.get("body", b""))
        self.arrived += size
        self._renew()
        if self.arrived > self._largest:
            raise self._too_large(self.arrived)
        if STREAMED_BYTES not in self._scope:
            self._permit.reserve(size)
        self.is_cut_off = message["type"] == "http.disconnect"
        self._finish_if(not message.get("more_body", False))
        return message

    def _renew(self) -> None:
        if self.patience is not None and self.arrived - self._counted >= LEAST_BYTES:
            self._counted = self.arrived
            self.patience.renew()

    async def until_left(self) -> None:
        """Returns when the client has closed the connection; before the body is read nobody can tell."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def drain(self) -> None:
        """Read and drop the rest of the body, within limits of time and bytes."""
        if self._is_held_back:
            return
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_DRAIN_S):
                while not self.complete and dropped <= MOST_DRAINED_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    self._finish_if(not message.get("more_body", False))

    def _check_headers(self) -> None:
        """Read where the body is first asked for, so that the refusal goes the way of all refusals."""
        length = self._headers.get("content-length", "0")
        if not length.isdigit():
            raise MalformedRequest("Content-Length is not a number")
        if int(length) > self._largest:
            raise self._too_large(int(length))
        allowed = ("identity", *self._scope.get(CODINGS, ()))
        if (coding := self._headers.get("content-encoding", "identity").strip().lower()) not in allowed:
            raise UnsupportedCoding(
                f"the body's Content-Encoding is {coding[:100]!r}; taken here: {', '.join(allowed)}",
                allowed=allowed,
            )

    def _too_large(self, actual: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body holds {actual} bytes or more; at most {self._largest} are taken",
            limit=self._largest,
            actual=actual,
        )


class _Answer:
    """What is sent: each part within a time, and after a refusal what the client still sends is read."""

    patience: _Patience | None = None

    def __init__(self, send: Send, body: _Body) -> None:
        self._send = send
        self._body = body
        self.has_begun = False

    async def send(self, message: Message) -> None:
        """One part; a client that takes nothing for too long is given up."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            if not (self._body.complete or self._body.will_come):
                MutableHeaders(scope=message)["Connection"] = "close"
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._end(message)
            return
        await self._part(message)

    async def _part(self, message: Message) -> None:
        if self.patience is None:
            await self._send(message)
            return
        self.patience.renew()
        with self.patience:
            await self._send(message)

    async def _end(self, message: Message) -> None:
        """The last part: what the client still sends is read, and what it was sent is waited for."""
        if message.get("body") or not self._body.complete:
            await self._part({**message, "more_body": True})
            await self._body.drain()
        await self._part({"type": "http.response.body", "body": b""})


def _left_while(permit: Permit, body: _Body, answer: _Answer) -> LeftWhile:
    """What was done for a client when it left."""
    if answer.has_begun:
        return "sending_answer"
    if body.is_cut_off or not body.complete:
        return "sending"
    return "running" if permit.timer.has_begun else "queued"
