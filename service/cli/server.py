"""The HTTP server of one process: uvicorn with our protocol, and an end without failed requests."""

import asyncio
import logging
import math
import os
import resource
import select
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import Any, cast

import click
import uvicorn

from service import __version__
from service.cli.protocol import Protocol
from service.errors import ConfigurationError
from service.settings import Settings

BACKLOG = 2048
# Longer than proxies keep idle connections (60 s in most), so that it is they who close them.
KEEP_ALIVE_S = 75
# The time for connections that were accepted last to send their requests.
LAST_REQUESTS_S, LOOK_S = 2.0, 0.02
# uvloop accepts one connection of a listening socket at each turn of its loop, and a busy loop turns seldom.
# Of 100 clients that came while 32 others were served, the last was answered after 12 to 19 s, with so many
# copies of the socket after 2. Each connection then costs 0.1 ms more.
COPIES = 16
log = logging.getLogger("featuremaps.server")


class Config(uvicorn.Config):
    """uvicorn's configuration, made from the settings; it can be pickled until it is loaded."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            partial(_make_app, settings),
            factory=True,
            workers=settings.workers,
            http=cast(Any, partial(Protocol, head_s=settings.max_stall_s)),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(settings.max_timeout_s),
        )
        self.settings = settings


def _make_app(settings: Settings) -> Any:
    """Import the application only where it runs: a supervisor of workers needs none of it."""
    from service.app import make_app

    return make_app(settings)


class Server(uvicorn.Server):
    """Ends in order: readiness first, then a grace period, then new connections, then accepted requests.

    A second signal ends at once.
    """

    def __init__(self, config: Config) -> None:
        """`config` is loaded."""
        super().__init__(config)
        self._readiness = config.loaded_app.state.readiness
        self._grace_s = config.settings.drain_grace_s
        self._ends_at = math.inf

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on sockets that listen, and on copies of them."""
        given = sockets or []
        super().run([*given, *(listening.dup() for listening in given for _ in range(COPIES - 1))])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; Ctrl+C skips the grace period, which is for load balancers."""
        if self._readiness.is_draining:
            log.warning("ended at once by a second signal")
            os._exit(128 + sig)
        self._readiness.is_draining = True
        self._ends_at = time.monotonic() + (0 if sig == signal.SIGINT else self._grace_s)

    async def on_tick(self, counter: int) -> bool:
        """Look at the clock ten times a second."""
        self.should_exit = self.should_exit or time.monotonic() >= self._ends_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what has connected, then answer it for as long as the longest request may take."""
        poll = select.poll()
        for listening in sockets or []:
            # New clients try again and are then refused, instead of being reset.
            listening.listen(0)
            poll.register(listening, select.POLLIN)
        while poll.poll(0):  # noqa: ASYNC110 - the event loop accepts meanwhile
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for _ in range(math.ceil(LAST_REQUESTS_S / LOOK_S)):
            if any(getattr(c, "cycle", None) is None for c in self.server_state.connections):
                # It has not sent a request yet; uvicorn would close it now.
                await asyncio.sleep(LOOK_S)
        await super().shutdown(sockets)


def listen(settings: Settings) -> list[socket.socket]:
    """Listen on one socket per worker, and print where.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    try:
        sockets = _listening_sockets(settings)
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror}") from error
    host, port = sockets[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"featuremaps {__version__} listens on http://{shown}:{port}")
    return sockets


def _listening_sockets(settings: Settings) -> list[socket.socket]:
    """Make one socket per worker; the system spreads connections over them by their addresses.

    Workers that accept from one socket spread 32 connections less evenly: the smaller share of two workers
    was 23 to 28 percent in the median of ten starts, with SO_REUSEPORT 42.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    make = partial(socket.create_server, family=family, backlog=BACKLOG, dualstack_ipv6=is_dual)
    first = make((settings.host, settings.port))
    if settings.workers == 1:
        return [first]
    # Now it is certain that no other service listens there, which SO_REUSEPORT would hide.
    address = (settings.host, first.getsockname()[1])
    first.close()
    return [make(address, reuse_port=True) for _ in range(settings.workers)]


def allow_connections() -> None:
    """Each takes a file of the process: as many as the system lets it have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(settings: Settings) -> None:
    """Serve until a signal ends it.

    Raises:
        ConfigurationError: the address cannot be listened on, or the settings do not allow a start.
    """
    allow_connections()
    config = Config(settings)
    config.load()
    Server(config).run(listen(settings))
