"""One connection: what a client sends before it is understood is bounded, in bytes and in time.

uvicorn's parser takes heads of any length, and waits for the end of one for ever.
"""

import asyncio
import resource
from collections.abc import Callable, Mapping
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

CONNECTION = "featuremaps.connection"
# Of a head, or of anything else that is no body, beside what one read of the socket brings.
LARGEST_HEAD_BYTES = 64 * 1024
TOO_LARGE, TOO_SLOW = "431 Request Header Fields Too Large", "408 Request Timeout"
Inner = Callable[[Mapping[str, Any]], asyncio.Protocol]


class Connection(asyncio.Protocol):
    """Passes everything on to the server's own protocol, and gives up a client that overdoes it."""

    def __init__(self, make_inner: Inner, *, head_s: float, idle_s: float) -> None:
        """`head_s` is for a head to arrive; after an answer `idle_s` more are for the next one to begin."""
        self._inner = make_inner({CONNECTION: self})
        self._head_s = head_s
        self._idle_s = idle_s
        self._unheeded = 0
        # One that is answered may end after the next one, sent behind it, has begun.
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        # uvloop's are none of asyncio's classes, but have the methods.
        self._transport = cast(asyncio.Transport, transport)
        self._wait(self._head_s)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it. Reading stops by itself while a body waits for the application."""
        if self._unheeded >= LARGEST_HEAD_BYTES:
            self._give_up(TOO_LARGE)
            return
        self._unheeded += len(data)
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """As asyncio calls it."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """As asyncio calls it."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """As asyncio calls it."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._cancel()
        self._is_lost = True
        self._inner.connection_lost(exc)

    def begin(self) -> None:
        """A head was read, and the application answers."""
        self._cancel()
        self._requests += 1
        self.heed()

    def heed(self) -> None:
        """What had arrived is of use: a head, or some of a body."""
        self._unheeded = 0

    def end(self) -> None:
        """The application has answered."""
        self._requests -= 1
        self.heed()
        # The timer of a lost one would hold all that there was of it for more than a minute.
        if not (self._requests or self._is_lost):
            self._wait(self._idle_s + self._head_s)

    def _wait(self, seconds: float) -> None:
        self._cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up, TOO_SLOW)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self, status: str) -> None:
        if self._requests or self._transport.is_closing():
            self._transport.abort()
            return
        head = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self._transport.write(head.encode())
        self._transport.close()
        # Who reads nothing would keep it open for ever.
        self._wait(self._head_s)


class Heeding:
    """Tells a connection when the application begins and has ended. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        connection: Connection | None = scope.get("state", {}).get(CONNECTION)
        if connection is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        connection.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            connection.end()


def allow_connections() -> None:
    """Each takes a file of the process: as many as the system lets it have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
