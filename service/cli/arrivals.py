"""Connections as they arrive: accepted here, or handed over by the supervisor that accepted them."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

import click

from service import __version__
from service.errors import ConfigurationError
from service.settings import Settings

BACKLOG = 2048
# At one turn of the loop, so that clients who come together are refused or answered together.
MOST_A_TURN = 64
# When no file can be opened any more, what waits is looked at again after a while.
REST_S = 0.2
log = logging.getLogger("featuremaps.server")
Take = Callable[[socket.socket], socket.socket]


class Lost(OSError):
    """A connection was handed over and cannot be had: the system has closed it."""


def listen(settings: Settings) -> socket.socket:
    """Listen, and say where.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host} port {settings.port}"
        raise ConfigurationError(f"cannot listen on {where}: {error.strerror}") from error
    listening.listen(BACKLOG)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"featuremaps {__version__} listens on http://{shown}:{port}")
    return listening


def hold_off(listening: socket.socket) -> None:
    """Shorten the queue to one: who comes now tries again and then finds nobody, instead of being cut off."""
    listening.listen(0)


def accept(listening: socket.socket) -> socket.socket:
    """The next connection that waits at a listening socket.

    Raises:
        BlockingIOError: none does.
    """
    return listening.accept()[0]


def receive(channel: socket.socket) -> socket.socket:
    """The next connection that the supervisor handed over.

    Raises:
        BlockingIOError: none was.
        EOFError: none will be.
        Lost: this process can open no more files.
    """
    data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if not data:
        raise EOFError
    if not descriptors:
        # The system says so by leaving the descriptor out.
        raise Lost(errno.EMFILE, os.strerror(errno.EMFILE))
    return socket.socket(fileno=descriptors[0])


class Arrivals:
    """Takes connections from where they come and gives each a protocol; lives on the event loop.

    uvloop accepts one connection a turn of its loop, and a busy loop turns seldom: new clients then wait
    for seconds to be refused. This takes as many as there are. `count` is of all so far, lost ones included
    since the supervisor counts them too; `has_ended` tells that no more will be handed over.
    """

    def __init__(self, source: socket.socket, take: Take) -> None:
        self.count = 0
        self.has_ended = False
        self._source = source
        self._take = take
        self._beginning: set[asyncio.Task[object]] = set()

    @property
    def are_opening(self) -> bool:
        """Whether some were taken that have no protocol yet."""
        return bool(self._beginning)

    def begin(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take what comes from now on."""
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._source.setblocking(False)
        self._loop.add_reader(self._source, self._look)

    def end(self) -> None:
        """Take what has come, and nothing more."""
        self._loop.remove_reader(self._source)
        if self._take is accept:
            hold_off(self._source)
        self._look(BACKLOG)
        self._source.close()

    def _look(self, most: int = MOST_A_TURN) -> None:
        for _ in range(most):
            try:
                connection = self._take(self._source)
            except BlockingIOError:
                return
            except EOFError:
                self.has_ended = True
                self._loop.remove_reader(self._source)
                return
            except OSError as error:
                self.count += isinstance(error, Lost)
                self._rest(error)
                return
            self._open(connection)

    def _open(self, connection: socket.socket) -> None:
        self.count += 1
        connection.setblocking(False)
        opening = self._loop.connect_accepted_socket(self._protocol, connection)
        task: asyncio.Task[object] = self._loop.create_task(opening)
        self._beginning.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[object]) -> None:
        self._beginning.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("a connection did not begin: %s", type(error).__name__)

    def _rest(self, error: OSError) -> None:
        """Out of files, or a connection that was gone before it was taken."""
        log.warning("connections wait: %s", error.strerror)
        self._loop.remove_reader(self._source)
        self._loop.call_later(REST_S, self._resume)

    def _resume(self) -> None:
        if self._source.fileno() >= 0:
            self._loop.add_reader(self._source, self._look)
