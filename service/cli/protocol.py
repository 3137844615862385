"""HTTP/1.1 of one connection: uvicorn's protocol, with the limits that it lacks."""

from typing import Any

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # Of all that is no body; what one read of the socket brings may exceed it.


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol without these faults, each of which a test of this module reproduces.

    - It reads heads of any length and waits for the end of one without a limit.
    - It drops the body of a request that offers HTTP/2, as Java's HttpClient does by default.
    - It takes a request with several `Host`, of which a proxy may have read another one.
    - It keeps all requests that arrive before an answer was sent, which here is the last of its connection.
      Reading goes on until then, so that a disconnect is noticed. Once it was sent, one request may wait.
    - It closes a connection only after its client has read everything that was sent.
    """

    def __init__(self, *args: Any, head_s: float, **options: Any) -> None:
        """`head_s` is the time for a head to arrive; a later one may begin within the keep-alive time."""
        super().__init__(*args, **options)
        self.app = self._answer
        self._head_s = head_s
        self._pending_bytes = 0
        self._timer = self.loop.call_later(head_s, self._refuse)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        self._unset_keepalive_if_required()
        if self._pending_bytes >= MAX_HEAD_BYTES:
            self._refuse("431 Request Header Fields Too Large")
            return
        self._pending_bytes += len(data)
        self._feed(data)

    def on_headers_complete(self) -> None:
        """As the parser calls it; an exception stops the parser and arrives in `_feed`."""
        if self._is_answering and (self.pipeline or not self._is_sent):
            raise ValueError("a request before the previous answer was sent")
        hosts = sum(name == b"host" for name, _ in self.headers)
        is_without_host = not hosts and self.parser.get_http_version() == "1.1"
        if is_without_host or hosts > 1 or self.parser.get_method() == b"CONNECT":
            raise ValueError("a tunnel, or not exactly one Host (RFC 9112, 3.2)")
        super().on_headers_complete()
        self._pending_bytes = 0
        self._timer.cancel()

    def on_body(self, body: bytes) -> None:
        """As the parser calls it."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        """As uvicorn calls it."""
        super().on_response_complete()
        if not self._is_answering and self in self.connections:
            self._close_in(self.timeout_keep_alive + self._head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        super().connection_lost(exc)
        self._timer.cancel()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_sent(self) -> bool:
        cycle = self.cycle
        return cycle.response_started and not (cycle.chunked_encoding or cycle.expected_content_length)

    def _should_upgrade(self) -> bool:
        return True  # uvicorn then passes over the head with the offer.

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; abort the connection where it gives up its answer."""
        cycle = self.cycle
        await self.config.loaded_app(scope, receive, send)
        if not (cycle.response_complete or cycle.disconnected):
            cycle.disconnected = True
            self.transport.abort()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._feed(self._head_without_offer() + data[offer.args[0] :])
        except httptools.HttpParserError:
            if self._is_answering and not self.cycle.more_body:
                self.cycle.keep_alive = False
            else:
                self._refuse("400 Bad Request")

    def _head_without_offer(self) -> bytes:
        """Return the same head as if nothing had been offered (RFC 9110, 7.8), for a new parser."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.scope["http_version"].encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, status: str = "408 Request Timeout") -> None:
        """Answer with a status and close; abort where an answer was begun or is not read."""
        if self.transport.is_closing() or (self._is_answering and self.cycle.response_started):
            self.transport.abort()
            return
        if self._is_answering:
            self.cycle.disconnected = True
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(status)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n{status}".encode())
        self.transport.close()
        self._close_in(self._head_s)

    def _close_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._refuse)
