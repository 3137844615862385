"""Starting the HTTP server, and ending it well."""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import uvicorn

from service.app import make_app
from service.cli.arrivals import Arrivals, accept, listen
from service.cli.connection import Connection, Heeding, allow_connections
from service.cli.protocol import Protocol
from service.settings import Settings

# Longer than proxies keep idle connections (60 s in most), so that it is they who close them.
KEEP_ALIVE_S = 75
# So long the connections that were taken last may take to send what they came for.
LAST_REQUESTS_S, LOOK_S = 2.0, 0.02
log = logging.getLogger("featuremaps.server")


class Server(uvicorn.Server):
    """Ends well: readiness first, then a grace period, then no new connections, then what was accepted.

    A second signal ends at once.
    """

    def __init__(self, app: Any, settings: Settings, arrivals: Arrivals, grace_s: float) -> None:
        config = uvicorn.Config(
            Heeding(app),
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            http=Protocol,
            ws="none",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.max_timeout_s),
        )
        super().__init__(config)
        self.readiness = app.state.readiness
        self._arrivals = arrivals
        self._grace_s = grace_s
        self._head_s = settings.max_stall_s
        self._ends_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to end; nobody balances load between terminals, so Ctrl+C has no grace period."""
        if self.readiness.is_draining:
            log.warning("ended at once by a second signal")
            os._exit(128 + sig)
        self.drain(0 if sig == signal.SIGINT else self._grace_s)

    def drain(self, grace_s: float) -> None:
        """Tell that no new work should be sent here, and end after a while."""
        self.readiness.is_draining = True
        self._ends_at = time.monotonic() + grace_s

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self._arrivals.has_ended and self._ends_at == math.inf:
            self.drain(0)
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections when the application has started."""
        await super().startup(sockets=[])
        self._arrivals.begin(self._protocol)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what was accepted, for as long as the longest request may take."""
        self._arrivals.end()
        for _ in range(math.ceil(LAST_REQUESTS_S / LOOK_S)):
            if self._somebody_is_silent():
                await asyncio.sleep(LOOK_S)
        await super().shutdown(sockets=[])

    def _somebody_is_silent(self) -> bool:
        """Whether a connection has not sent a request's head yet; uvicorn would close it at once."""
        connections = self.server_state.connections
        return self._arrivals.are_opening or any(getattr(c, "cycle", None) is None for c in connections)

    def _protocol(self) -> asyncio.Protocol:
        return Connection(self._inner, head_s=self._head_s, idle_s=KEEP_ALIVE_S)

    def _inner(self, state: Mapping[str, Any]) -> asyncio.Protocol:
        """`state` reaches the application beside that of its lifespan."""
        return Protocol(self.config, self.server_state, {**self.lifespan.state, **state})


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: the address cannot be listened on, or the settings do not allow a start.
    """
    allow_connections()
    app = make_app(settings)
    listening = listen(settings)
    Server(app, settings, Arrivals(listening, accept), settings.drain_grace_s).run()
