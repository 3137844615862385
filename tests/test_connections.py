"""Clients that hold a connection and never come to the point, over real sockets to the real server."""

import asyncio
import contextlib
import gc
import resource
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator

import httpx
import psutil
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.cli.protocol import Protocol
from service.web.body_limit import MOST_DRAINED_BYTES
from tests.builders import encoded, photograph, put, small_cnn
from tests.servers import Server, serving

FEATURES = "/v1/models/small/features?layers=stem/relu&format=npy"
HEAD = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: "
STALL_S = 3.0
Address = tuple[str, int]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    with serving("--models", str(folder), "--max-stall-s", str(STALL_S)) as server:
        yield server


def connect(server: Server) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port or 0), 60)


def rss(server: Server) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


@contextlib.contextmanager
def others_are_served(server: Server) -> Iterator[None]:
    """Somebody asks all the while, and gets every answer."""
    done, statuses = threading.Event(), []

    def ask() -> None:
        with server.client() as client:
            while not done.is_set() or not statuses:
                answer = client.post(FEATURES, content=encoded(photograph(40, 30), "PNG"))
                statuses.append(answer.status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join(120)
    assert set(statuses) == {200}


def flood(connection: socket.socket, head: bytes, part: bytes, most_bytes: int) -> int:
    """Send until the other side has had enough; how much it took."""
    connection.sendall(head)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most_bytes:
            connection.sendall(part)
            sent += len(part)
    return sent


def answer_of(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def test_a_head_that_trickles_in_is_given_up_and_others_are_served(server: Server) -> None:
    with others_are_served(server), connect(server) as slow:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            slow.sendall(HEAD)
            while time.monotonic() - start < 60:
                slow.sendall(b"a")
                slow.settimeout(0.2)
                with contextlib.suppress(TimeoutError):
                    assert slow.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
                    break
        assert STALL_S * 0.9 < time.monotonic() - start < 60


def test_a_connection_on_which_nothing_comes_is_closed(server: Server) -> None:
    with connect(server) as idle:
        assert answer_of(idle).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "part", [b"a" * 65_536, b"a\r\nX-More: " * 6_000], ids=["one header", "many headers"]
)
def test_a_head_of_a_megabyte_is_refused_with_memory_flat(server: Server, part: bytes) -> None:
    before = rss(server)
    with others_are_served(server), connect(server) as client:
        assert flood(client, HEAD, part, 200 << 20) < 20 << 20
    with connect(server) as client:
        flood(client, HEAD, part, 1 << 20)
        assert b"200 OK" not in answer_of(client)
    assert rss(server) - before < 40 << 20


def test_a_head_of_ordinary_length_is_read(server: Server) -> None:
    with server.client() as client:
        assert client.get("/livez", headers={"X-Long": "a" * 30_000}).status_code == 200


@pytest.mark.parametrize("size", [1 << 16, 1 << 20], ids=["small chunks", "large chunks"])
def test_a_chunked_body_of_ten_gigabytes_is_refused_with_memory_flat(server: Server, size: int) -> None:
    before = rss(server)
    head = f"POST {FEATURES} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    part = b"%x\r\n" % size + bytes(size) + b"\r\n"
    with others_are_served(server), connect(server) as client:
        sent = flood(client, head, part, 10 << 30)
    assert sent < MOST_DRAINED_BYTES + (128 << 20)
    assert rss(server) - before < 120 << 20


def test_trailers_without_end_are_refused_with_memory_flat(server: Server) -> None:
    before = rss(server)
    head = f"POST {FEATURES} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".encode()
    with others_are_served(server), connect(server) as client:
        assert flood(client, head, b"X-More: aaaaaaaa\r\n" * 4_000, 200 << 20) < 20 << 20
    assert rss(server) - before < 40 << 20


@contextlib.asynccontextmanager
async def accepting(
    app: ASGIApp, seconds: float
) -> AsyncIterator[tuple[Address, list["weakref.ref[Protocol]"]]]:
    """An application on loopback: where, and the connections that it took, as long as anything holds them."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    config.timeout_keep_alive = seconds  # type: ignore[assignment]
    config.load()
    state, taken = ServerState(), list["weakref.ref[Protocol]"]()

    def accept() -> Protocol:
        made = Protocol(config, state, {}, head_s=seconds)
        taken.append(weakref.ref(made))
        return made

    async with await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname(), taken


def test_nothing_is_kept_of_a_connection_whose_client_left_while_it_was_answered() -> None:
    """For a minute each of them held 10 kB, in a timer for its next request."""
    has_begun = asyncio.Event()

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        has_begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def run() -> object:
        async with accepting(app, 60) as (address, taken):
            _, writer = await asyncio.open_connection(*address)
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            await has_begun.wait()
            writer.transport.abort()
            for _ in range(100):
                gc.collect()
                if taken[0]() is None:
                    break
                await asyncio.sleep(0.02)
            return taken[0]()

    assert asyncio.run(run()) is None


def test_a_connection_whose_client_reads_nothing_is_given_up() -> None:
    """What the system does not take lies in the transport, which waits with its close until that is read."""
    answered = 0

    async def app(_: Scope, __: Receive, send: Send) -> None:
        nonlocal answered
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"30000")]})
        await send({"type": "http.response.body", "body": bytes(30_000)})
        answered += 1

    async def run() -> bool:
        loop = asyncio.get_running_loop()
        async with accepting(app, 1) as (address, taken):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(address)
                client.setblocking(False)
                while not (taken and (connection := taken[0]()) and connection.transport):  # noqa: ASYNC110
                    await asyncio.sleep(0)
                for sent in range(1, 10_000):
                    await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    while answered < sent:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                    if connection.transport.get_write_buffer_size():
                        break
                # An empty line takes uvicorn's own timer away.
                await loop.sock_sendall(client, b"\r\n")
                for _ in range(1000):
                    if connection not in connection.connections:
                        return True
                    await asyncio.sleep(0.02)
        return False

    assert asyncio.run(run())


def test_a_request_waits_for_the_end_of_an_answer_that_was_sent() -> None:
    """Clients send the next request when they have an answer, before the application has ended."""
    may_end = asyncio.Event()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": True})
        await may_end.wait()
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        async with accepting(app, 60) as (address, taken):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"\r\n\r\nok")
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            connection = taken[0]()
            while connection and not connection.pipeline:  # noqa: ASYNC110
                await asyncio.sleep(0)
            may_end.set()
            await reader.readuntil(b"\r\n\r\nok")
            writer.close()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_idle_connections_cost_little_and_end(server: Server, count: int) -> None:
    """Others are served meanwhile; afterwards all of them are closed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 1000:
        pytest.skip(f"this system gives a process {hard} files at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = rss(server)
    idle: list[socket.socket] = []
    try:
        with others_are_served(server):
            idle.extend(connect(server) for _ in range(count))
            assert rss(server) - before < 200 << 20
        assert all(answer_of(connection).startswith(b"HTTP/1.1 408 ") for connection in idle)
    finally:
        for connection in idle:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
