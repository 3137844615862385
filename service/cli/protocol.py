"""HTTP/1.1 of one connection: uvicorn's, where clients do what it does not expect."""

import asyncio
import socket
from collections.abc import Sized
from functools import partial
from typing import Any

import httptools
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.cli.connection import CONNECTION

NO_HTTP = "Invalid HTTP request received."
LOOK_S = 0.25
# Linux's TCP_CLOSE and TCP_CLOSE_WAIT (tcp_states.h): what only the other side can have brought about.
LEFT = (7, 8)


class Flow(FlowControl):
    """Reads no more while a request waits behind another: each answer would let in thousands."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        """As uvicorn calls it."""
        if not self._waiting:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """Reads on where uvicorn would drop a body, and tells every request that its client has left.

    - Whoever offers another protocol, as Java's client offers HTTP/2, is answered in this one.
    - Who leaves while a request waits behind another is noticed, and the other ends too.
    - What is no HTTP spoils no answer to what came before it.
    - An answer that was given up ends its connection at once.
    """

    _answered: RequestResponseCycle
    _is_offer = False
    _is_deaf = False
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio calls it."""
        super().connection_made(transport)
        self.flow = Flow(transport, self.pipeline)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        self._unset_keepalive_if_required()
        # Views, last one first: thousands of offers may lie in what one read of the socket brings.
        parts = [memoryview(data)]
        while parts and not self._is_deaf:
            part = parts.pop()
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":
                    self._refuse()
                    return
                parts += [part[upgrade.args[0] :], memoryview(self._head_without_offer())]
            except httptools.HttpParserError:
                self._refuse()
                return

    def on_headers_complete(self) -> None:
        """As the parser calls it; it stops behind a head with an offer."""
        self._is_offer = self.parser.should_upgrade()
        if self._is_offer:
            return
        _check_host(self.headers, self.parser.get_http_version())
        super().on_headers_complete()
        if self.pipeline and self._looking is None:
            self._look()

    def on_body(self, body: bytes) -> None:
        """As the parser calls it."""
        self.app_state[CONNECTION].heed()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As the parser calls it."""
        if not self._is_offer:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        if self.cycle is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        self.flow.resume_reading()
        super()._start_asgi_task(cycle, partial(self._answer, cycle, app))

    async def _answer(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """An answer that was given up ends the connection: to close it would wait for who does not read.

        What raises, as at the end of a service's grace, is uvicorn's to answer.
        """
        await app(scope, receive, send)
        if not (cycle.response_complete or cycle.disconnected):
            cycle.disconnected = True
            self.transport.abort()

    def _head_without_offer(self) -> bytes:
        """The same request as if nothing else had been offered (RFC 9110, 7.8), for a new parser."""
        version = self.parser.get_http_version().encode()
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # As uvicorn does.
        return b"".join([*head, b"\r\n"])

    def _refuse(self) -> None:
        """What came before is answered; behind it nothing is read any more."""
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(NO_HTTP)
            return
        if self.cycle.more_body:  # It is the body of this one that is broken.
            if not self.pipeline:
                self._refuse_answered()
                return
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._answered
        self._is_deaf = True
        self.cycle.keep_alive = False
        self.flow.resume_reading()

    def _refuse_answered(self) -> None:
        if self.cycle.response_started:
            self.transport.close()
        else:
            self.send_400_response(NO_HTTP)

    def _look(self) -> None:
        """Nothing is read while a request waits behind another, so only the system knows who has left."""
        self._looking = None
        if not self.pipeline or self.transport.is_closing():
            return
        if _has_left(self.transport.get_extra_info("socket")):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(LOOK_S, self._look)


def _check_host(headers: list[tuple[bytes, bytes]], version: str) -> None:
    """What lies before the service may have read the other one of two (RFC 9112, 3.2).

    Raises:
        ValueError: there are several, or none where there has to be one; the parser stops.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise ValueError("not one Host")


def _has_left(connection: socket.socket) -> bool:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or not hasattr(socket, "TCP_INFO"):
        return False
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in LEFT
