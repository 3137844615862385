"""The stall timeout: a client may not hold its request open by sending or reading next to nothing."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded
from service.web.context import context_of

# Minimum bytes of request body per `max_stall_s`; protects against slow-body (slowloris) clients.
LEAST_BYTES = 16 * 1024


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
        now = asyncio.get_running_loop().time
        waited_s, progress = 0.0, 0

        async def receive_in_time() -> Message:
            nonlocal waited_s, progress
            if arrived.is_set():
                return await receive()
            start = now()
            try:
                async with asyncio.timeout(self._stall_s - waited_s):
                    message = await receive()
            except TimeoutError as error:
                raise self._stalled() from error
            waited_s += now() - start
            progress += len(message.get("body", b""))
            if progress >= LEAST_BYTES:
                waited_s, progress = 0.0, 0
            return message

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                return
            if message.get("body") and not message.get("more_body", False):
                # The server waits for a part to be taken only when the next one follows.
                await send_in_time({**message, "more_body": True})
                message = {"type": "http.response.body", "body": b""}
            try:
                async with asyncio.timeout(self._stall_s):
                    await send(message)
            except TimeoutError as error:
                raise ClientDisconnect from error

        await self._app(scope, receive_in_time, send_in_time)

    def _stalled(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"less than {LEAST_BYTES} bytes of the body arrived in {self._stall_s:g} seconds",
            limit=self._stall_s,
        )
