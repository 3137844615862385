"""Ending well: what was accepted is answered, whatever comes meanwhile; over real processes and sockets."""

import asyncio
import signal
import socket
import time
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.builders import encoded, photograph, put, small_cnn
from tests.servers import Server, serving
from tests.web.inside import slow_cnn

CLIENTS = 64
FEATURES = "/v1/models/small/features?layers=stem/relu&format=npy"
SLOW = "/v1/models/slow/features?layers=last&size=256x256&format=npy"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    put(folder, "slow", slow_cnn(), toml="[input]\nsize = [16, 16]\n")
    return folder


class Load:
    """Clients that ask again as soon as they are answered, until nobody listens any more."""

    def __init__(self, url: str, image: bytes) -> None:
        self.answered = 0
        self.has_begun = asyncio.Event()
        self.statuses: set[int] = set()
        self.failed: dict[str, str] = {}
        self._url = url + FEATURES
        self._image = image

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(self._ask(session, client) for client in range(CLIENTS)))

    async def _ask(self, session: aiohttp.ClientSession, client: int) -> None:
        for number in range(100_000):
            name = f"client{client}-{number}"
            # Bodies differ, so that each request is worked on.
            body = self._image + f"{client} {number}".encode()
            try:
                async with session.post(self._url, data=body, headers={"X-Request-Id": name}) as answer:
                    await answer.read()
            except aiohttp.ClientConnectorError:
                return
            except aiohttp.ClientError as error:
                self.failed[name] = repr(error)
                continue
            self.answered += 1
            if self.answered == 3 * CLIENTS:
                self.has_begun.set()
            self.statuses.add(answer.status)


def until(server: Server, status: int) -> None:
    end = time.monotonic() + 20
    with server.client() as client:
        while client.get("/readyz").status_code != status:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_accepted_request_fails_when_it_ends_under_load(models: Path, workers: str) -> None:
    image = encoded(photograph(32, 32), "PNG")
    options = ("--models", str(models), "--workers", workers, "--max-in-flight", "256")

    async def run(server: Server) -> Load:
        load = Load(server.url, image)
        running = asyncio.create_task(load.run())
        await load.has_begun.wait()
        server.process.send_signal(signal.SIGTERM)
        await running
        return load

    with serving(*options, FEATUREMAPS_DRAIN_GRACE_S="1") as server:
        load = asyncio.run(run(server))
        assert server.process.wait(60) == 0
    assert load.statuses == {200}
    # The log names every request that was read; who connected last and sent too late was not accepted.
    accepted = {line.split()[-1] for line in server.log if " featuremaps.access " in line}
    assert len(accepted) >= load.answered
    assert not accepted.intersection(load.failed)


def test_readiness_goes_first_and_requests_are_taken_meanwhile(models: Path) -> None:
    image = encoded(photograph(32, 32))
    with (
        serving("--models", str(models), FEATUREMAPS_DRAIN_GRACE_S="2") as server,
        server.client() as kept_alive,
        server.client() as new,
    ):
        assert "connection" not in kept_alive.post(FEATURES, content=image).headers
        server.process.send_signal(signal.SIGTERM)
        until(server, 503)
        for client in (kept_alive, new):
            answer = client.post(FEATURES, content=image)
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert new.get("/livez").status_code == 200
        problem = new.get("/readyz").json()
        assert (problem["code"], problem["detail"]) == (
            "not-ready",
            "the service is ending: send new work elsewhere",
        )
        assert server.process.wait(60) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_signal_ends_at_once(models: Path, workers: str) -> None:
    with (
        serving("--models", str(models), "--workers", workers, FEATUREMAPS_DRAIN_GRACE_S="600") as server,
        socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as client,
    ):
        body = encoded(photograph(64, 64))
        client.sendall(
            f"POST {SLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        server.process.send_signal(signal.SIGTERM)
        until(server, 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM


def test_what_is_being_computed_is_answered_and_new_connections_are_refused(models: Path) -> None:
    body = encoded(photograph(64, 64))
    with (
        serving("--models", str(models), FEATUREMAPS_DRAIN_GRACE_S="0") as server,
        socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 60) as client,
    ):
        client.sendall(
            f"POST {SLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        with server.client() as looking:
            while "featuremaps_in_flight 1.0" not in looking.get("/metrics").text:
                time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert client.recv(1 << 10).startswith(b"HTTP/1.1 200")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/livez", trust_env=False)
        while client.recv(1 << 20):
            pass
        assert server.process.wait(60) == 0
