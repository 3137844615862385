"""A client that closes its connection: the work for it is cancelled."""

import asyncio

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.context import RequestContext, context_of


class Disconnect:
    """Cancel the application when the client disconnects after its body has arrived.

    A disconnect within the body reaches the application where it reads the body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI.

        Raises:
            ClientDisconnect
        """
        context = context_of(scope)
        work = asyncio.timeout(None)
        watch = asyncio.create_task(_wait_for_disconnect(context, receive, work))

        async def receive_body() -> Message:
            if context.body_arrived.is_set():
                return {"type": "http.request", "body": b"", "more_body": False}
            return await receive()

        try:
            async with work:
                await self._app(scope, receive_body, send)
        except TimeoutError as error:
            if not work.expired():
                raise
            raise ClientDisconnect from error
        finally:
            watch.cancel()


async def _wait_for_disconnect(context: RequestContext, receive: Receive, work: asyncio.Timeout) -> None:
    await context.body_arrived.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
    work.reschedule(asyncio.get_running_loop().time())
