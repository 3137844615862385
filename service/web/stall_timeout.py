"""The stall timeout: a client may not hold its request open by sending or reading next to nothing."""

import asyncio
import math
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded
from service.web.context import context_of

# Minimum bytes of request body per `max_stall_s`; protects against slow-body (slowloris) clients.
LEAST_BYTES = 16 * 1024
LOOKS_PER_STALL = 4
Waited = TypeVar("Waited")


class StallTimeout:
    """Refuse a body of which too little arrives, and stop answering a client that reads nothing.

    Only the time in which the service waits for the client counts.
    """

    def __init__(self, app: ASGIApp, stall_s: float) -> None:
        self._app = app
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        arrived = context_of(scope).body_arrived
        watchdog = _Watchdog(self._stall_s)
        progress = 0

        async def receive_in_time() -> Message:
            nonlocal progress
            if arrived.is_set():
                return await receive()
            try:
                message = await watchdog.wait(receive())
            except TimeoutError as error:
                raise self._stalled() from error
            progress += len(message.get("body", b""))
            if progress >= LEAST_BYTES:
                progress = 0
                watchdog.renew()
            return message

        async def send_in_time(message: Message) -> None:
            watchdog.renew()
            try:
                if message.get("body") and not message.get("more_body", False):
                    # The server waits for a part to be taken only when the next one follows.
                    await watchdog.wait(send({**message, "more_body": True}))
                    message = {"type": "http.response.body", "body": b""}
                await watchdog.wait(send(message))
            except TimeoutError as error:
                raise ClientDisconnect from error

        try:
            await self._app(scope, receive_in_time, send_in_time)
        finally:
            watchdog.close()

    def _stalled(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"less than {LEAST_BYTES} bytes of the body arrived in {self._stall_s:g} seconds",
            limit=self._stall_s,
        )


class _Watchdog:
    """Interrupt a wait when the waits since the last renewal have taken too long.

    One timer serves all waits of a request, exact to a quarter of the time: `asyncio.timeout` around each
    took 8 percent of the event loop's time for an early layer.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = self._left_s = stall_s
        self._loop = asyncio.get_running_loop()
        self._ends_at = math.inf
        self._task: asyncio.Task[object] | None = None
        self._is_over = False
        self._timer = self._loop.call_later(stall_s / LOOKS_PER_STALL, self._look)

    def renew(self) -> None:
        """Begin to count again."""
        self._left_s = self._stall_s

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    async def wait(self, waiting: Awaitable[Waited]) -> Waited:
        """Wait for the client.

        Raises:
            TimeoutError
        """
        self._task = asyncio.current_task()
        self._ends_at = self._loop.time() + self._left_s
        try:
            return await waiting
        except asyncio.CancelledError as error:
            if self._is_over and self._task and not self._task.uncancel():
                raise TimeoutError from error
            raise
        finally:
            self._left_s = self._ends_at - self._loop.time()
            self._ends_at = math.inf

    def _look(self) -> None:
        if self._task and self._loop.time() >= self._ends_at:
            self._is_over = True
            self._task.cancel()
        self._timer = self._loop.call_later(self._stall_s / LOOKS_PER_STALL, self._look)
