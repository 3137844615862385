"""A load generator on asyncio and aiohttp: `python -m benchmarks.load URL --layer LAYER ...`.

wrk and perf_analyzer measure closed loops well. This one also has an open loop that counts refusals and their
latency by status, reads the stages in `Server-Timing`, and states its own CPU time.

Closed loop: each of a number of clients waits for its answer before it sends the next request. It finds the
highest throughput, and it slows down with the service. Open loop: requests begin when they are due, as those
of independent callers do. Their latency counts from the due time, so that a late start of a request does not
hide the wait for a slow service.
"""

import argparse
import asyncio
import json
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from benchmarks.images import drawn_image, numbered

READ_BYTES = 1 << 18
# Without a pause a client would send 10,000 requests a second to a dead server.
PAUSE_AFTER_FAILURE_S = 0.1
# The most specific class first: the first match names the failure.
FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorError, "connect"),
    (aiohttp.ClientPayloadError, "cut off"),
    (aiohttp.ServerDisconnectedError, "disconnected"),
    (aiohttp.ClientResponseError, "not HTTP"),
    (aiohttp.ClientConnectionError, "connection"),
    (OSError, "connection"),
    (aiohttp.ClientError, "other"),
)
# The stages in `Server-Timing` that belong to one part of the time of an answer.
PARTS = {
    "queue": ("queue",),
    "decode": ("decode", "preprocess"),
    "run": ("run",),
    "encode": ("reduce", "encode", "compress"),
}


@dataclass(frozen=True)
class Closed:
    """`concurrency` clients, each of which waits for its answer and keeps its connection."""

    concurrency: int

    @property
    def most_outstanding(self) -> int:
        return self.concurrency

    def __str__(self) -> str:
        return f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"


@dataclass(frozen=True)
class Open:
    """`rate` requests a second with Poisson arrivals, whatever the service does; always the same schedule."""

    rate: float
    most_outstanding: int = 512

    def gaps(self) -> Iterator[float]:
        """Seconds from each arrival to the next, without end."""
        rng = np.random.default_rng(0)
        while True:
            yield float(rng.exponential(1 / self.rate))

    def __str__(self) -> str:
        return f"{self.rate:g}/s"


Arrivals = Closed | Open


@dataclass(frozen=True)
class Target:
    """Where requests go; `body` makes the body of each from its number."""

    url: str
    body: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished request.

    `seconds` ends after the last byte of the answer and begins when the request started; in an open loop that
    is when it was due, and `late_s` is how much later it was sent. `status` is 0 without an answer, `stages`
    holds the milliseconds of `Server-Timing`, `failure` names what broke, also in the middle of an answer.
    """

    late_s: float
    seconds: float
    status: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def answered(self) -> bool:
        """Whether it holds a whole answer with a status in the 200s."""
        return self.failure is None and 200 <= self.status < 300


@asynccontextmanager
async def running(target: Target, arrivals: Arrivals, timeout_s: float = 60.0) -> AsyncIterator["Load"]:
    """Keep up a load until the block ends, then wait for its last answers; an error drops them."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=arrivals.most_outstanding),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept-Encoding",),
        auto_decompress=False,
        read_bufsize=READ_BYTES,
    ) as session:
        load = Load(session, target, arrivals)
        try:
            yield load
        except BaseException:
            await load.end(drop=True)
            raise
        await load.end()


class Load:
    """What `running` gives: pending requests and samples of the finished ones.

    `not_begun` counts requests of an open loop that were due while `most_outstanding` were pending.
    """

    def __init__(self, session: aiohttp.ClientSession, target: Target, arrivals: Arrivals) -> None:
        self.not_begun = 0
        self._outstanding = 0
        self._session = session
        self._target = target
        self._begun = 0
        self._samples: list[Sample] = []
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._bug: BaseException | None = None
        self._calling: asyncio.Task[None] | None = None
        if isinstance(arrivals, Open):
            self._calling = self._start(self._callers(arrivals))
        else:
            for _ in range(arrivals.concurrency):
                self._start(self._client())

    async def end(self, *, drop: bool = False) -> None:
        """Begin no further request and wait for the pending ones, or cancel them."""
        self._stopping = True
        for task in list(self._tasks):
            if drop or task is self._calling:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(self) -> list[Sample]:
        """Return the samples since the last call; an exception in our own code is raised here."""
        if self._bug is not None:
            raise self._bug
        taken, self._samples = self._samples, []
        return taken

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._bug = self._bug or task.exception()

    async def _client(self) -> None:
        while not self._stopping:
            sample = await self._ask(time.perf_counter())
            if sample.failure:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    async def _callers(self, arrivals: Open) -> None:
        due = time.perf_counter()
        for gap in arrivals.gaps():
            due += gap
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            if self._outstanding >= arrivals.most_outstanding:
                self.not_begun += 1
            else:
                self._outstanding += 1
                self._start(self._caller(due))

    async def _caller(self, due: float) -> None:
        try:
            await self._ask(due)
        finally:
            self._outstanding -= 1

    async def _ask(self, start: float) -> Sample:
        late, status, failure = time.perf_counter() - start, 0, None
        stages: dict[str, float] = {}
        body = self._target.body(self._begun)
        self._begun += 1
        try:
            async with self._session.post(self._target.url, data=body, allow_redirects=False) as answer:
                status, stages = answer.status, read_timing(answer.headers.getall("Server-Timing", []))
                async for _ in answer.content.iter_any():
                    pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = next(name for kind, name in FAILURES if isinstance(error, kind))
        sample = Sample(late, time.perf_counter() - start, status, stages, failure)
        self._samples.append(sample)
        return sample


def read_timing(headers: Sequence[str]) -> dict[str, float]:
    """Parse `Server-Timing` headers (W3C) to milliseconds by name; entries without a duration are skipped."""
    stages: dict[str, float] = {}
    for entry in ",".join(headers).split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = (part.strip() for part in parameter.partition("="))
            if key.lower() == "dur":
                try:
                    stages[name] = stages.get(name, 0.0) + float(value.strip('"'))
                except ValueError:
                    continue
    return stages


async def measure(target: Target, arrivals: Arrivals, seconds: float) -> dict[str, Any]:
    """Measure one load for a number of seconds.

    Rates count the answers that ended in that time. Latencies and refusals are of all requests that began in
    it, also of those that ended later: otherwise the slowest would never be counted. Times are milliseconds,
    null without answers; percentiles by nearest rank.
    """
    async with running(target, arrivals) as load:
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(seconds)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        in_time = load.take()
    samples = [*in_time, *load.take()]
    refused = by_status(samples)
    return {
        "load": str(arrivals),
        "concurrency": arrivals.concurrency if isinstance(arrivals, Closed) else None,
        "seconds": seconds,
        "answers_per_s": sum(sample.answered for sample in in_time) / seconds,
        **_latencies([sample for sample in samples if sample.answered]),
        "refused": {str(status): len(those) for status, those in refused.items()},
        "refused_p99_ms": {
            str(status): _percentile([s.seconds * 1000 for s in those], 99)
            for status, those in refused.items()
        },
        "failed": by_failure(samples),
        "not_begun": load.not_begun,
        "generator_cpu_s": cpu,
    }


def _latencies(answers: Sequence[Sample]) -> dict[str, float | None]:
    """Percentiles of the whole latency, and medians of its parts.

    `network` is the client's time less the stages of the server: HTTP at both ends, and the transfer.
    """
    whole = [s.seconds * 1000 for s in answers]
    network = [(s.seconds - s.late_s) * 1000 - sum(s.stages.values()) for s in answers]
    return {
        **{f"p{percent}_ms": _percentile(whole, percent) for percent in (50, 99)},
        **{
            f"{part}_ms": _percentile(
                [sum(s.stages.get(stage, 0.0) for stage in stages) for s in answers], 50
            )
            for part, stages in PARTS.items()
        },
        "network_ms": _percentile(network, 50),
    }


def _percentile(values: Sequence[float], percent: int) -> float | None:
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else None


def by_status(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """Group the whole answers outside the 200s."""
    refused: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.failure is None and not sample.answered:
            refused.setdefault(sample.status, []).append(sample)
    return dict(sorted(refused.items()))


def by_failure(samples: Sequence[Sample]) -> dict[str, int]:
    """Count the failed requests by kind."""
    return dict(sorted(Counter(s.failure for s in samples if s.failure is not None).items()))


def main() -> int:
    words = argparse.ArgumentParser(
        prog="python -m benchmarks.load", description="Print one JSON row per load."
    )
    words.add_argument("url", help="of the service")
    words.add_argument("--model", default="resnet50")
    words.add_argument("--layer", required=True)
    words.add_argument("--query", default="", help="further parameters, as in a URL")
    words.add_argument("--image", type=Path, help="file to send; without it a drawn JPEG of 100 kB")
    words.add_argument("--seconds", type=float, default=10.0, help="of each load")
    either = words.add_mutually_exclusive_group(required=True)
    either.add_argument("--concurrency", type=int, nargs="+", help="clients that wait for their answers")
    either.add_argument("--rate", type=float, nargs="+", help="requests a second")
    given = words.parse_args()
    image = given.image.read_bytes() if given.image else drawn_image()
    query = urllib.parse.urlencode({"layers": given.layer, "format": "npy"})
    path = f"/v1/models/{given.model}/features?{query}&{given.query}"
    target = Target(given.url + path.removesuffix("&"), lambda number: numbered(image, number))
    loads: list[Arrivals] = [Closed(number) for number in given.concurrency or ()]
    for arrivals in loads or [Open(number) for number in given.rate]:
        print(json.dumps(asyncio.run(measure(target, arrivals, given.seconds))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
