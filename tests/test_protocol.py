"""What clients do that uvicorn does not expect, over real sockets to the real server."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from service.web.keys import make_key
from tests.builders import encoded, photograph
from tests.servers import Server, serving

MAPS = "/v1/models/cifar-resnet/features?layers=stem.relu&format=npy"
# Seconds of work for the bundled network.
LONG = "/v1/models/cifar-resnet/statistics?layers=stage:-1&size=1000x1000"
IMAGE = encoded(photograph(500, 375, seed=1), quality=96)
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
BEHIND = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
AT_ONCE = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(wait=True) as server:
        yield server


def connect(server: Server) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port or 0), 60)


def post(path: str = MAPS, headers: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGE)}\r\n".encode()
    return head + headers + b"\r\n" + IMAGE


def answer(file: BinaryIO) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    status = int(file.readline().split()[1])
    head = b"".join(iter(file.readline, b"\r\n"))
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return status, file.read(int(length[1]) if length else 0)


def only_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer, and that nothing but the connection's end follows."""
    with connection.makefile("rb") as file:
        found = answer(file)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        assert file.read() == b""
    return found


def expected(server: Server) -> bytes:
    with server.client() as client:
        return client.post(MAPS, content=IMAGE).raise_for_status().content


@pytest.mark.parametrize("piece", [1 << 20, 997, 1], ids=["at once", "in pieces", "a byte a piece"])
def test_a_post_that_offers_http2_is_answered_as_if_it_did_not(server: Server, piece: int) -> None:
    """As `java.net.http.HttpClient` sends every request to `http://`."""
    request = post(headers=OFFER)
    head = request.index(b"\r\n\r\n") + 40
    with connect(server) as client, client.makefile("rb") as file:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, head, piece):
            client.sendall(request[start : min(start + piece, head)])
        client.sendall(request[head:])
        assert answer(file) == (200, expected(server))
        client.sendall(post(headers=OFFER))
        assert answer(file) == (200, expected(server))
        client.sendall(post())
        assert only_answer(client) == (200, expected(server))


def test_pipelined_requests_end_the_connection_after_the_first_answer(server: Server) -> None:
    with connect(server) as client:
        client.sendall(post() + post())
        with client.makefile("rb") as file:
            assert answer(file) == (200, expected(server))
            assert file.read() == b""


@pytest.mark.parametrize("before", [b"", post(LONG)], ids=["alone", "behind a long one"])
def test_twenty_thousand_pipelined_requests_cost_little_memory(server: Server, before: bytes) -> None:
    def send(requests: bytes) -> None:
        with connect(server) as client, contextlib.suppress(OSError):
            client.sendall(requests)
            while client.recv(1 << 16):
                pass

    send(before + BEHIND * 2)
    without = server.peak_bytes(lambda: send(before + BEHIND * 2))
    assert server.peak_bytes(lambda: send(before + BEHIND * 20_000)) < without + (20 << 20)


def test_an_offer_of_websockets_is_answered_with_the_page_itself(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert only_answer(client)[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1\r\nHost: x\r\n", 200),
        (b"HTTP/1.1\r\nHost:\r\n", 200),
        (b"HTTP/1.0\r\n", 200),
        (b"HTTP/1.1\r\n", 400),
        (b"HTTP/1.1\r\nHost: x\r\nHost: y\r\n", 400),
        (b"HTTP/1.0\r\nhost: x\r\nHOST: x\r\n", 400),
        (b"HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n", 400),
    ],
)
def test_a_request_is_for_one_host(server: Server, head: bytes, status: int) -> None:
    with connect(server) as client:
        client.sendall(b"GET /livez " + head + b"\r\n")
        assert only_answer(client)[0] == status


def test_a_tunnel_is_refused(server: Server) -> None:
    with connect(server) as client:
        client.sendall(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01")
        assert only_answer(client)[0] == 400


def test_a_body_in_chunks_of_one_byte_is_read(server: Server) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in IMAGE)
    with connect(server) as client:
        client.sendall(f"POST {MAPS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        client.sendall(chunks + b"0\r\n\r\n")
        assert only_answer(client) == (200, expected(server))


def test_a_body_that_nobody_reads_brings_no_second_answer(server: Server) -> None:
    with connect(server) as client:
        client.sendall(
            b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
        )
        assert only_answer(client)[0] == 200


@pytest.mark.parametrize(
    "rest", [b"NO HTTP\r\n\r\n", post(LONG)[:100] + b"\x00\r\n\r\n", post().replace(b"HTTP/1.1", b"HTTP/9")]
)
def test_what_is_no_http_spoils_no_answer_to_what_came_before(server: Server, rest: bytes) -> None:
    with connect(server) as client:
        client.sendall(post() + rest)
        assert only_answer(client) == (200, expected(server))


def test_a_broken_body_spoils_no_answer_to_what_came_before(server: Server) -> None:
    broken = b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nNO\r\n"
    with connect(server) as client:
        client.sendall(post() + broken)
        assert only_answer(client) == (200, expected(server))
    with connect(server) as client:
        client.sendall(broken)
        assert only_answer(client)[0] == 400


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_who_leaves_with_a_request_behind_another_ends_the_work(server: Server, reset: bool) -> None:
    """The work is cancelled: it does not run to its end, and nothing is held for it."""
    before = cancelled(server)
    with connect(server) as client:
        client.sendall(post(LONG) + BEHIND)
        wait_for(lambda: in_flight(server) == 1)
        if reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
    wait_for(lambda: in_flight(server) == 0)
    assert cancelled(server) == before + 1


def test_an_answer_to_who_has_left_with_a_request_behind_it_is_no_error_of_ours() -> None:
    with serving(wait=True) as server:
        for _ in range(5):
            with connect(server) as client:
                client.sendall(post() + post())
        wait_for(lambda: in_flight(server) == 0)
    assert "Traceback" not in "".join(server.log)


def metric(server: Server, name: str) -> float:
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"featuremaps_{name}[ {{]", line))


def cancelled(server: Server) -> float:
    return metric(server, "cancelled_total")


def in_flight(server: Server) -> float:
    return metric(server, "in_flight")


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def impatient() -> Iterator[Server]:
    """A service with keys that gives a client half a second."""
    token, line = make_key("tests", "infer")
    with serving("--max-stall-s", "0.5", FEATUREMAPS_KEYS=line) as server:
        server.headers["Authorization"] = f"Bearer {token}"
        yield server


def until_closed(server: Server) -> None:
    """Soon the server has no connection any more, whatever the other side does."""
    ends = time.monotonic() + 30
    while any(c.raddr for c in psutil.Process(server.pid).net_connections("tcp")):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_who_reads_none_of_many_refusals_is_given_up(impatient: Server) -> None:
    """Requests behind each other without a key, until the refusals fill all that lies between."""
    with connect(impatient) as client:
        client.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(100_000):
                client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
        until_closed(impatient)


def test_an_answer_that_was_given_up_ends_its_connection_at_once(impatient: Server) -> None:
    """A close would wait until who reads nothing has read what lies before it."""
    key = f"Authorization: {impatient.headers['Authorization']}\r\n".encode()
    with connect(impatient) as client:
        client.sendall(post("/v1/models/cifar-resnet/features?layers=stem.relu&size=512x512&format=npy", key))
        time.sleep(0.3)
        until_closed(impatient)


def test_a_request_that_is_cut_off_when_the_grace_ends_gets_503() -> None:
    with serving("--max-timeout-s", "1") as server, connect(server) as client:
        client.sendall(post()[:-1])
        time.sleep(0.3)
        os.kill(server.pid, signal.SIGTERM)
        status, body = only_answer(client)
    assert (status, json.loads(body)["code"]) == (503, "not-ready")
    assert any("POST '/v1/models/cifar-resnet/features' 503" in line for line in server.log)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HttpToolsProtocol, "_should_upgrade"),
        (HttpToolsProtocol, "_unset_keepalive_if_required"),
        (HttpToolsProtocol, "on_headers_complete"),
        (HttpToolsProtocol, "on_response_complete"),
        (Process, "target"),
        (Process, "is_alive"),
        (Multiprocess, "init_processes"),
        (Multiprocess, "keep_subprocess_alive"),
        (Multiprocess, "terminate_all"),
        (Multiprocess, "join_all"),
        (uvicorn.Server, "handle_exit"),
        (uvicorn.Server, "on_tick"),
        (uvicorn.Server, "shutdown"),
    ],
)
def test_uvicorn_has_what_is_overridden_or_called(owner: type, name: str) -> None:
    """None of it is documented; pyproject.toml pins the minor version for that reason."""
    assert callable(getattr(owner, name))


def test_uvicorn_calls_the_application_of_the_connection() -> None:
    """The attributes of a connection and its request that our protocol reads and sets."""
    connection = set(HttpToolsProtocol.__init__.__code__.co_names)
    assert connection >= {
        "app",
        "config",
        "cycle",
        "headers",
        "loop",
        "parser",
        "timeout_keep_alive",
        "transport",
    }
    request = set(RequestResponseCycle.__init__.__code__.co_names)
    assert request >= {"disconnected", "keep_alive", "more_body", "response_complete", "response_started"}
    assert request >= {"chunked_encoding", "expected_content_length"}
