"""A load generator for any HTTP service, on asyncio and aiohttp; it knows nothing of what it asks for.

Closed loop: a number of clients, each of which waits for its answer before it asks again. It finds what a
service can do, and it slows down with the service. Open loop: requests begin when they are due, answered or
not, as those of callers who know nothing of each other do. Their latency counts from when they were due, so
that waiting for a slow service cannot hide in requests that were begun late.
"""

import asyncio
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import numpy as np

# aiohttp warns of bytes from one MiB on, and sends a file in pieces instead.
LARGE_BODY = 1 << 20
READ_BYTES = 1 << 18
# A client whose connection fails asks again after this: a dead server would be asked 10,000 times a second.
PAUSE_AFTER_FAILURE_S = 0.1
# From the particular to the general: the first that fits names the failure.
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


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    method: str
    url: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


# What is asked for next, by the number of requests before it.
Requests = Callable[[int], Request]


@dataclass(frozen=True)
class Closed:
    """`concurrency` clients, each of which waits for its answer; connections are kept."""

    concurrency: int

    @property
    def most_outstanding(self) -> int:
        """Requests under way at most."""
        return self.concurrency

    def __str__(self) -> str:
        return f"{self.concurrency} client{'s' if self.concurrency > 1 else ''}"


@dataclass(frozen=True)
class Open:
    """`rate` requests a second, whatever the service does.

    `poisson` arrivals come as those of independent callers do, with bursts that queues have to take; it is
    the default because even ones flatter a queue. The same `seed` gives the same schedule.
    """

    rate: float
    spacing: Literal["poisson", "even"] = "poisson"
    most_outstanding: int = 512
    seed: int = 0

    def gaps(self) -> Iterator[float]:
        """Seconds from each arrival to the next, without end."""
        rng = np.random.default_rng(self.seed)
        while True:
            yield float(rng.exponential(1 / self.rate)) if self.spacing == "poisson" else 1 / self.rate

    def __str__(self) -> str:
        return f"{self.rate:g}/s"


Arrivals = Closed | Open


@dataclass(frozen=True, slots=True)
class Sample:
    """One request, over. Seconds count from `start`, a time of `time.perf_counter`.

    In an open loop `start` is when the request was due, and `late_s` how much later it was begun.
    `first_byte_s` ends when the answer's head is there, None without one; `seconds` after its last byte.
    `status` is 0 without an answer, `size` bytes of body, `stages` the milliseconds of `Server-Timing`.
    `failure` names what broke, also where it broke in the middle of an answer.
    """

    start: float
    late_s: float
    seconds: float
    first_byte_s: float | None = None
    status: int = 0
    size: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None

    @property
    def answered(self) -> bool:
        """Whether it holds a whole answer of the 200s."""
        return self.failure is None and 200 <= self.status < 300


@asynccontextmanager
async def running(requests: Requests, arrivals: Arrivals, timeout_s: float = 60.0) -> AsyncIterator["Load"]:
    """A load from entering to leaving; leaving waits for what is under way, unless an error ends it.

    A request that takes longer than `timeout_s` has failed.
    """
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=arrivals.most_outstanding),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        # What is measured is what travels: nothing is asked for compressed unless the request says so.
        skip_auto_headers=("Accept-Encoding", "Content-Type"),
        auto_decompress=False,
        read_bufsize=READ_BYTES,
    ) as session:
        load = Load(session, requests, arrivals)
        try:
            yield load
        except BaseException:
            await load.end(drop=True)
            raise
        await load.end()


class Load:
    """What `running` gives: requests under way and samples of those that ended.

    `not_begun` counts requests of an open loop that were due while as many as allowed were outstanding.
    """

    def __init__(self, session: aiohttp.ClientSession, requests: Requests, arrivals: Arrivals) -> None:
        self.arrivals = arrivals
        self.not_begun = 0
        self.outstanding = 0
        self._session = session
        self._requests = requests
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
        """Begin nothing more and wait for what is under way, or drop it."""
        self._stopping = True
        for task in list(self._tasks):
            if drop or task is self._calling:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def take(self) -> list[Sample]:
        """What ended since this was last called, in the order that it ended; a bug of ours is raised here."""
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
            if self.outstanding >= arrivals.most_outstanding:
                self.not_begun += 1
            else:
                self.outstanding += 1
                self._start(self._caller(due))

    async def _caller(self, due: float) -> None:
        try:
            await self._ask(due)
        finally:
            self.outstanding -= 1

    async def _ask(self, start: float) -> Sample:
        begun = time.perf_counter()
        head, size, status, failure = None, 0, 0, None
        stages: dict[str, float] = {}
        try:
            async with self._answer() as answer:
                head = time.perf_counter() - start
                status, stages = answer.status, read_timing(answer.headers.getall("Server-Timing", []))
                async for piece in answer.content.iter_any():
                    size += len(piece)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = next(name for kind, name in FAILURES if isinstance(error, kind))
        sample = Sample(
            start=start,
            late_s=begun - start,
            seconds=time.perf_counter() - start,
            first_byte_s=head,
            status=status,
            size=size,
            stages=stages,
            failure=failure,
        )
        self._samples.append(sample)
        return sample

    def _answer(self) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A large body is a file of its own each time, its bytes shared."""
        request = self._requests(self._begun)
        self._begun += 1
        body = io.BytesIO(request.body) if len(request.body) >= LARGE_BODY else request.body
        return self._session.request(
            request.method, request.url, data=body or None, headers=request.headers, allow_redirects=False
        )


def read_timing(headers: Sequence[str]) -> dict[str, float]:
    """Milliseconds by name of the headers `Server-Timing` (W3C); what has no duration is left out."""
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


def by_status(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    """The whole answers outside the 200s."""
    refused: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.failure is None and not sample.answered:
            refused.setdefault(sample.status, []).append(sample)
    return dict(sorted(refused.items()))


def by_failure(samples: Sequence[Sample]) -> dict[str, int]:
    """How many requests broke in which way."""
    return dict(sorted(Counter(s.failure for s in samples if s.failure is not None).items()))


def cpu_seconds() -> float:
    """User and system time of this process so far, so that the generator's own can be left out."""
    return time.process_time()
