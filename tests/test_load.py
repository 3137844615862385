"""The load generator of the benchmarks against a small real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from benchmarks.images import drawn_image, numbered
from benchmarks.load import (
    Arrivals,
    Closed,
    Load,
    Open,
    Sample,
    Target,
    by_failure,
    by_status,
    measure,
    read_timing,
    running,
)
from service.intake.decode import decode
from tests.builders import encoded, photograph

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A server on loopback for one test."""
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield "http://{}:{}/".format(*runner.addresses[0])
    finally:
        await runner.cleanup()


def target(url: str) -> Target:
    return Target(url, lambda number: b"%d" % number)


def loaded(
    handler: Handler, arrivals: Arrivals, seconds: float, timeout_s: float = 10
) -> tuple[list[Sample], Load]:
    """What a load of so many seconds gives, what was under way at its end included."""

    async def run() -> tuple[list[Sample], Load]:
        async with answering(handler) as url:
            async with running(target(url), arrivals, timeout_s) as load:
                await asyncio.sleep(seconds)
            return load.take(), load

    return asyncio.run(run())


async def pong(_: web.Request) -> web.Response:
    await asyncio.sleep(0)
    return web.Response(text="pong")


class Counting:
    """How many requests are worked on at one time, over which connections."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.active = self.most = 0
        self.connections: set[object] = set()

    async def answer(self, request: web.Request) -> web.Response:
        self.connections.add(request.transport)
        self.active += 1
        self.most = max(self.most, self.active)
        await asyncio.sleep(self.seconds)
        self.active -= 1
        return web.Response(text="pong")


@pytest.mark.parametrize("concurrency", [1, 5])
def test_a_closed_loop_keeps_its_concurrency_and_its_connections(concurrency: int) -> None:
    handler = Counting(0.02)
    samples, _ = loaded(handler.answer, Closed(concurrency), 0.4)
    assert handler.most == len(handler.connections) == concurrency
    # Little's law: no client rests, so together they wait all the time, of which the last answers are later.
    assert 0.8 * 0.4 * concurrency < sum(s.seconds for s in samples) < 1.5 * 0.4 * concurrency
    assert all(s.answered for s in samples)


def test_an_open_loop_keeps_its_rate() -> None:
    samples, load = loaded(Counting(0.05).answer, Open(100), 0.6)
    due = sum(np.cumsum(list(islice(Open(100).gaps(), 200))) < 0.6)
    assert abs(len(samples) - due) <= 2
    assert load.not_begun == 0


def test_poisson_arrivals_are_those_of_independent_callers() -> None:
    gaps = list(islice(Open(50).gaps(), 20_000))
    assert np.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert np.std(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert gaps == list(islice(Open(50).gaps(), 20_000))


def test_a_stall_counts_against_all_who_were_due_in_it() -> None:
    """The server stops the whole process, the generator included: what is begun late was due before."""
    calls = iter(range(1000))

    async def stalls_once(_: web.Request) -> web.Response:
        if next(calls) == 10:
            time.sleep(0.3)  # noqa: ASYNC251 - the stall that is meant
        await asyncio.sleep(0)
        return web.Response()

    samples, load = loaded(stalls_once, Open(100), 0.6)
    slow = sorted(s.seconds for s in samples if s.seconds > 0.05)
    # Due all over the 0.3 s, so their waits are spread evenly up to it.
    assert len(slow) >= 20
    assert max(slow) >= 0.29
    assert np.median(slow) > 0.12
    assert sum(s.late_s > 0.05 for s in samples) >= 20
    assert load.not_begun == 0


def test_what_cannot_be_begun_is_counted() -> None:
    handler = Counting(0.5)
    samples, load = loaded(handler.answer, Open(100, most_outstanding=3), 0.4)
    due = sum(np.cumsum(list(islice(Open(100).gaps(), 200))) < 0.4)
    assert (len(samples), handler.most) == (3, 3)
    assert abs(load.not_begun - (due - 3)) <= 2


def test_samples_hold_the_stages() -> None:
    async def staged(_: web.Request) -> web.Response:
        await asyncio.sleep(0)
        return web.Response(headers={"Server-Timing": "decode;dur=1.5, run;dur=7"})

    samples, _ = loaded(staged, Closed(1), 0.1)
    assert {tuple(sample.stages.items()) for sample in samples} == {(("decode", 1.5), ("run", 7.0))}


@pytest.mark.parametrize(
    ("header", "stages"),
    [
        ("decode;dur=1.25, queue;dur=0, run;dur=3", {"decode": 1.25, "queue": 0.0, "run": 3.0}),
        ('run; desc="the network" ; DUR="2.5"', {"run": 2.5}),
        ("run;dur=1, run;dur=2", {"run": 3.0}),
        ("miss, run;dur=soon, hit;desc=x", {}),
        ("", {}),
    ],
)
def test_server_timing_is_read(header: str, stages: dict[str, float]) -> None:
    assert read_timing([header]) == stages


async def leaves(request: web.Request) -> web.Response:
    assert request.transport
    request.transport.close()
    await asyncio.sleep(0)
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Length": "1000"})
    await answer.prepare(request)
    await answer.write(b"half")
    assert request.transport
    request.transport.close()
    return answer


@pytest.mark.parametrize(
    ("handler", "failure", "status"),
    [(leaves, "disconnected", 0), (breaks_off, "cut off", 200), (Counting(5).answer, "timeout", 0)],
)
def test_failures_are_counted_by_kind(handler: Handler, failure: str, status: int) -> None:
    samples, _ = loaded(handler, Closed(2), 0.15, timeout_s=0.1)
    assert by_failure(samples) == {failure: len(samples)}
    assert {s.status for s in samples} == {status}
    assert not any(s.answered for s in samples)


def test_a_dead_server_is_asked_with_pauses() -> None:
    async def run() -> list[Sample]:
        async with answering(pong) as url:
            pass
        async with running(target(url), Closed(2)) as load:
            await asyncio.sleep(0.25)
        return load.take()

    samples = asyncio.run(run())
    assert by_failure(samples) == {"connect": len(samples)}
    assert 2 <= len(samples) <= 8


def test_what_is_not_http_is_a_failure() -> None:
    async def gibberish(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\r\n\r\n")
        await writer.drain()
        writer.close()

    async def run() -> list[Sample]:
        server = await asyncio.start_server(gibberish, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, running(target(f"http://127.0.0.1:{port}"), Closed(1)) as load:
            await asyncio.sleep(0.1)
        return load.take()

    samples = asyncio.run(run())
    assert by_failure(samples) == {"not HTTP": len(samples)}


def test_refusals_are_counted_by_status() -> None:
    statuses = iter([200, 503, 404] * 10_000)

    async def refuses(_: web.Request) -> web.Response:
        await asyncio.sleep(0.001)
        return web.Response(status=next(statuses))

    samples, _ = loaded(refuses, Closed(1), 0.1)
    assert by_failure(samples) == {}
    assert set(by_status(samples)) == {404, 503}


def test_a_bug_of_ours_is_not_hidden() -> None:
    async def run() -> None:
        async with running(Target("http://127.0.0.1", lambda _: 1 / 0), Closed(1)) as load:  # type: ignore[arg-type, return-value]
            await asyncio.sleep(0.02)
            load.take()

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_requests_are_numbered() -> None:
    async def run() -> list[bytes]:
        bodies: list[bytes] = []

        async def keep(request: web.Request) -> web.Response:
            bodies.append(await request.read())
            return web.Response()

        async with answering(keep) as url, running(target(url), Closed(2)):
            await asyncio.sleep(0.1)
        return bodies

    bodies = asyncio.run(run())
    assert sorted(map(int, bodies)) == list(range(len(bodies)))


def test_an_error_drops_what_is_under_way() -> None:
    async def run() -> None:
        async with answering(Counting(5).answer) as url, running(target(url), Closed(2)):
            await asyncio.sleep(0.05)
            raise KeyError("ours")

    start = time.perf_counter()
    with pytest.raises(KeyError):
        asyncio.run(run())
    assert time.perf_counter() - start < 2


def test_what_is_slow_counts_though_it_ends_after_the_measurement() -> None:
    """Every fifth takes longer than all of it; a median of the others alone would hide a fifth."""
    calls = iter(range(10_000))

    async def slow_at_times(_: web.Request) -> web.Response:
        await asyncio.sleep(2 if next(calls) % 5 == 0 else 0.001)
        return web.Response()

    async def run() -> dict[str, Any]:
        async with answering(slow_at_times) as url:
            return await measure(target(url), Open(40), 1.2)

    told = asyncio.run(run())
    assert told["p99_ms"] >= 2000
    assert told["p50_ms"] < 1000
    # The rate leaves out what ended later, some eight of forty answers a second.
    assert 20 < told["answers_per_s"] < 40
    assert told["failed"] == {}


def test_the_drawn_image_is_the_same_each_time_and_of_the_stated_size() -> None:
    drawn = drawn_image()
    assert drawn == drawn_image()
    assert 80_000 < len(drawn) < 120_000
    assert drawn.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_numbered_image_is_the_same_picture_in_other_bytes(kind: str) -> None:
    image = encoded(photograph(), kind)
    first, second = numbered(image, 1), numbered(image, 2)
    assert len({image, first, second}) == 3
    same, other = decode(image, max_pixels=10**6), decode(second, max_pixels=10**6)
    assert (same.pixels == other.pixels).all()
    assert same.media_type == other.media_type
