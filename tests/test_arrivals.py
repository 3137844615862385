"""Connections that one process hands to another, over real sockets."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.cli.arrivals import Arrivals, Lost, receive


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process keeps those that it has and can open none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def hand(channel: socket.socket) -> socket.socket:
    """Hand one end of a connection over, and keep the other."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(channel, [b"c"], [theirs.fileno()])
    return ours


def test_a_connection_for_which_no_file_is_left_is_lost_and_those_after_it_are_taken() -> None:
    channel, theirs = socket.socketpair()
    with channel, theirs, hand(channel) as first, hand(channel) as second:
        with no_more_files(), pytest.raises(Lost, match="Too many open files"):
            receive(theirs)
        assert first.recv(1) == b""
        with receive(theirs) as taken:
            taken.sendall(b"x")
        assert second.recv(1) == b"x"


def test_the_end_is_when_the_other_side_hands_over_no_more() -> None:
    channel, theirs = socket.socketpair()
    with theirs:
        channel.close()
        with pytest.raises(EOFError):
            receive(theirs)


def test_who_has_no_file_left_rests_and_goes_on() -> None:
    class Greeting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"hello")  # type: ignore[attr-defined]
            transport.close()

    async def run() -> tuple[bytes, int, bool]:
        channel, theirs = socket.socketpair()
        arrivals = Arrivals(theirs, receive)
        with channel, hand(channel):
            arrivals.begin(Greeting)
            with no_more_files():
                while not (arrivals.count or arrivals.has_ended):  # noqa: ASYNC110
                    await asyncio.sleep(0)
            with hand(channel) as second:
                reader, writer = await asyncio.open_connection(sock=second)
                told = await asyncio.wait_for(reader.read(), 10)
                writer.close()
            arrivals.end()
        return told, arrivals.count, arrivals.has_ended

    assert asyncio.run(run()) == (b"hello", 2, False)
