"""The load generator against a small real server, and what is made of its samples."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from service.cli.bench import _measured
from service.cli.load import (
    Arrivals,
    Closed,
    Load,
    Open,
    Request,
    Sample,
    by_failure,
    by_status,
    read_timing,
    running,
)
from service.cli.windows import Schedule, Window, agree, join, measure, percentile, stable

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


def loaded(
    handler: Handler, arrivals: Arrivals, seconds: float, body: bytes = b"", timeout_s: float = 10
) -> tuple[list[Sample], Load]:
    """What a load of so many seconds gives, what was under way at its end included."""

    async def run() -> tuple[list[Sample], Load]:
        async with answering(handler) as url:
            async with running(lambda _: Request("POST", url, body), arrivals, timeout_s) as load:
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
    # Little's law: nobody rests, so together they wait all the time.
    first, last = min(s.start for s in samples), max(s.start + s.seconds for s in samples)
    busy = sum(s.seconds for s in samples) / (last - first)
    assert 0.8 * concurrency < busy <= concurrency
    assert all(s.answered and s.size == 4 for s in samples)


def test_an_open_loop_keeps_its_rate() -> None:
    samples, load = loaded(Counting(0.05).answer, Open(100, "even"), 0.6)
    starts = sorted(s.start for s in samples)
    assert 50 <= len(samples) <= 60
    assert all(abs(b - a - 0.01) < 1e-6 for a, b in pairwise(starts))
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

    samples, load = loaded(stalls_once, Open(100, "even"), 0.6)
    slow = sorted(s.seconds for s in samples if s.seconds > 0.05)
    # Due evenly over 0.3 s, so their waits are spread evenly up to it.
    assert len(slow) >= 20
    assert max(slow) >= 0.29
    assert np.median(slow) > 0.12
    assert sum(s.late_s > 0.05 for s in samples) >= 20
    assert load.not_begun == 0


def test_what_cannot_be_begun_is_counted() -> None:
    handler = Counting(0.5)
    samples, load = loaded(handler.answer, Open(100, "even", most_outstanding=3), 0.4)
    assert (len(samples), handler.most) == (3, 3)
    assert 30 <= load.not_begun <= 40


def test_stages_first_byte_and_bytes_are_told() -> None:
    async def slow_body(request: web.Request) -> web.StreamResponse:
        assert len(await request.read()) == 3 << 20
        answer = web.StreamResponse(headers={"Server-Timing": "decode;dur=1.5, run;dur=7"})
        await answer.prepare(request)
        for _ in range(3):
            await answer.write(bytes(100_000))
            await asyncio.sleep(0.02)
        return answer

    samples, _ = loaded(slow_body, Closed(1), 0.1, body=bytes(3 << 20))
    for sample in samples:
        assert sample.stages == {"decode": 1.5, "run": 7.0}
        assert sample.size == 300_000
        assert sample.first_byte_s is not None
        assert sample.seconds - sample.first_byte_s >= 0.05


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
        async with running(lambda _: Request("GET", url), Closed(2)) as load:
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
        async with server, running(lambda _: Request("GET", f"http://127.0.0.1:{port}"), Closed(1)) as load:
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
        async with running(lambda _: Request("GET", "http://127.0.0.1", body=None), Closed(1)) as load:  # type: ignore[arg-type]
            await asyncio.sleep(0.02)
            load.take()

    with pytest.raises(TypeError):
        asyncio.run(run())


def test_requests_are_numbered() -> None:
    async def run() -> list[bytes]:
        bodies: list[bytes] = []

        async def keep(request: web.Request) -> web.Response:
            bodies.append(await request.read())
            return web.Response()

        async with (
            answering(keep) as url,
            running(lambda number: Request("POST", url, b"%d" % number), Closed(2)),
        ):
            await asyncio.sleep(0.1)
        return bodies

    bodies = asyncio.run(run())
    assert sorted(map(int, bodies)) == list(range(len(bodies)))


def test_an_error_drops_what_is_under_way() -> None:
    async def run() -> None:
        async with answering(Counting(5).answer) as url, running(lambda _: Request("GET", url), Closed(2)):
            await asyncio.sleep(0.05)
            raise KeyError("ours")

    start = time.perf_counter()
    with pytest.raises(KeyError):
        asyncio.run(run())
    assert time.perf_counter() - start < 2


class Prepared:
    """A load whose windows are known: so many answers of 10 ms in each."""

    def __init__(self, counts: list[int]) -> None:
        self._counts: Iterator[int] = iter(counts)

    def take(self) -> list[Sample]:
        return [Sample(0.0, 0.0, 0.01, status=200)] * next(self._counts)


@pytest.mark.parametrize(
    ("counts", "until_stable", "windows", "is_stable"),
    [
        ([10, 50, 100, 100, 100, 100, 100, 100], True, 5, True),
        ([10, 50, 100, 100, 100, 100, 100, 100], False, 8, True),
        ([10, 50, 10, 50, 10, 50, 10, 50], True, 8, False),
        ([0] * 8, True, 8, False),
    ],
)
def test_it_measures_until_three_windows_agree(
    counts: list[int], until_stable: bool, windows: int, is_stable: bool
) -> None:
    seen: list[Window] = []
    schedule = Schedule(window_s=0.05, max_s=0.4, tolerance=0.3, until_stable=until_stable)
    measured = asyncio.run(measure(Prepared(counts), schedule, seen.append))  # type: ignore[arg-type]
    assert (len(measured.windows), measured.stable) == (windows, is_stable)
    assert seen == list(measured.windows)
    assert len(measured.whole.answers) == sum(counts[:windows])
    assert len(measured.kept.answers) == sum(counts[windows - 3 : windows] if until_stable else counts)


def test_what_is_slow_counts_though_it_ends_after_the_measurement() -> None:
    """Every fifth takes longer than all of it; a median of the others alone would hide a fifth."""
    calls = iter(range(10_000))

    async def slow_at_times(_: web.Request) -> web.Response:
        await asyncio.sleep(2 if next(calls) % 5 == 0 else 0.001)
        return web.Response()

    async def run() -> dict[str, Any]:
        arrivals = Open(40, "even")
        async with answering(slow_at_times) as url:
            schedule = Schedule(0.3, 1.2, until_stable=False)
            return await _measured(lambda _: Request("POST", url), arrivals, schedule, None, print)

    told = asyncio.run(run())
    assert told["p90_ms"] >= 2000
    assert told["p50_ms"] < 1000
    assert told["failed"] == {}


@given(st.floats(0.1, 100), st.floats(0.1, 3600), st.booleans())
def test_a_schedule_has_three_windows_and_ends_in_time(window_s: float, max_s: float, until: bool) -> None:
    schedule = Schedule(window_s, max_s, until_stable=until)
    assert schedule.count >= 3
    assert schedule.count * schedule.length_s <= max_s * (1 + 1e-6)
    if not until:
        assert schedule.count * schedule.length_s == pytest.approx(max_s)


SECONDS = st.floats(0, 1e6)


@given(st.lists(SECONDS, min_size=1), st.integers(0, 100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    enough = [v for v in values if 100 * sum(x <= v for x in values) >= percent * len(values)]
    assert found == min(enough)


@given(st.lists(SECONDS, min_size=1), st.integers(0, 100), st.integers(0, 100))
def test_percentiles_are_in_order(values: list[float], one: int, other: int) -> None:
    assert percentile(values, min(one, other)) <= percentile(values, max(one, other))


@given(st.lists(st.floats(1e-3, 1e6), min_size=1), st.floats(1e-3, 1), st.floats(1e-3, 1e3))
def test_agreement_asks_only_for_shares(values: list[float], tolerance: float, factor: float) -> None:
    mean = sum(values) / len(values)
    furthest = max(abs(v - mean) for v in values) / mean
    if abs(furthest - tolerance) > 1e-6:
        assert agree(values, tolerance) == (furthest < tolerance)
        assert agree([v * factor for v in values], tolerance) == agree(values, tolerance)


@given(st.lists(st.integers(1, 40), min_size=3, max_size=6))
def test_joined_windows_lose_nothing(counts: list[int]) -> None:
    windows = [Window(2.0, (Sample(0.0, 0.0, 0.5, status=200),) * n) for n in counts]
    whole = join(windows)
    assert whole.rate == pytest.approx(sum(counts) / (2.0 * len(counts)))
    assert stable(windows, 1.0) >= stable(windows, 0.05)
    assert stable([*windows, *[windows[0]] * 3], 0.0)
