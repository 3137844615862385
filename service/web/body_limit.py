"""Bounds on the bodies of requests: their length, their content encoding, and the memory that they hold.

Starlette's RequestBodyLimitMiddleware (1.10), on which FastAPI's `max_body_size` (0.165) rests, does not fit:
once Content-Length is over the limit it replaces any answer with a plain-text 413 (reproduced with a 401). It
leaves the rest of a refused body to the server, which took all of 20 MB over a limit of 1 kB, and it has no
place where bytes could be charged to a request while they arrive.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, MalformedRequest, UnsupportedCoding
from service.web.context import RequestContext, context_of

# A client that still sends reads the refusal of its body only afterwards, so the rest of the body is read and
# dropped. Both limits are needed: in 5 s a fast client sends more than 10 GB over loopback.
LONGEST_DRAIN_S = 5.0
MOST_DRAINED_BYTES = 64 << 20


@dataclass(frozen=True)
class BodyRule:
    """What a body may be; `is_held` says that it is kept in memory, where it counts for admission control."""

    max_bytes: int
    encodings: tuple[str, ...] = ()
    is_held: bool = True


class BodyLimit:
    """Refuse bodies that break their route's rule, and count all others while they arrive.

    `rules` are those of the routes, by the templates of their paths, that differ from the default.

    The application learns of a refusal when it reads the body: a request that it refuses for another reason
    gets that answer, whatever its body. Before an answer to an unread body ends, the rest is read.
    """

    def __init__(self, app: ASGIApp, default: BodyRule, rules: Mapping[str, BodyRule]) -> None:
        self._app = app
        self._default = default
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        context = context_of(scope)
        body = _Body(context, receive, self._default, self._rules)
        is_open = False

        async def send_before_end(message: Message) -> None:
            nonlocal is_open
            if not context.body_arrived.is_set():
                if message["type"] == "http.response.start" and not body.rest_is_short:
                    MutableHeaders(scope=message)["Connection"] = "close"
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    is_open = True
                    message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, body.receive, send_before_end)
        if is_open:
            await body.drain()
            await send({"type": "http.response.body", "body": b""})


class _Body:
    """The body of one request as it arrives."""

    def __init__(
        self, context: RequestContext, receive: Receive, default: BodyRule, rules: Mapping[str, BodyRule]
    ) -> None:
        self._context = context
        self._receive = receive
        self._default = default
        self._rules = rules
        self._headers = Headers(scope=context.scope)

    @cached_property
    def _rule(self) -> BodyRule:
        """The rule of the route, which was found when the body is first read."""
        return self._rules.get(self._context.route or "", self._default)

    @property
    def _is_held_back(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends (RFC 9110, 10.1.1)."""
        return self._context.received_bytes == 0 and "expect" in self._headers

    @property
    def rest_is_short(self) -> bool:
        """Whether the rest will be sent and is short enough to be read: the connection stays usable."""
        length = self._headers.get("content-length", "")
        return not self._is_held_back and length.isdigit() and int(length) <= self._default.max_bytes

    async def receive(self) -> Message:
        """Return the next part, or after the last one what the server reports: the disconnect.

        Raises:
            BodyTooLarge, MalformedRequest, UnsupportedCoding, Overloaded
        """
        context = self._context
        if context.body_arrived.is_set():
            return await self._receive()
        if context.received_bytes == 0:
            self._check_headers()
        message = await self._receive()
        size = len(message.get("body", b""))
        context.received_bytes += size
        self._check_length(context.received_bytes)
        if self._rule.is_held:
            context.permit.reserve(size)
        self._note_end(message)
        return message

    async def drain(self) -> None:
        """Read and drop the rest, up to a limit of time and one of bytes."""
        if self._is_held_back:
            return
        dropped = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_DRAIN_S):
                while not self._context.body_arrived.is_set() and dropped <= MOST_DRAINED_BYTES:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        return
                    dropped += len(message.get("body", b""))
                    self._note_end(message)

    def _note_end(self, message: Message) -> None:
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._context.body_arrived.set()

    def _check_headers(self) -> None:
        length = self._headers.get("content-length", "0")
        if not length.isdigit():
            raise MalformedRequest("Content-Length is not a number")
        self._check_length(int(length))
        allowed = ("identity", *self._rule.encodings)
        if (coding := self._headers.get("content-encoding", "identity").strip().lower()) not in allowed:
            raise UnsupportedCoding(
                f"the body's Content-Encoding is {coding[:100]!r}; taken here: {', '.join(allowed)}",
                allowed=allowed,
            )

    def _check_length(self, actual: int) -> None:
        limit = self._rule.max_bytes
        if actual > limit:
            detail = f"the body holds {actual} bytes or more; at most {limit} are taken"
            raise BodyTooLarge(detail, limit=limit, actual=actual)
