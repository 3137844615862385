"""The threads that do the work: each stage has as many as it may use, so that none starves another."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from service.engine.runner import Stop, Stopped
from service.pipeline.admission import Admission
from service.pipeline.stopwatch import Stopwatch

T = TypeVar("T")
P = ParamSpec("P")
# Work that yields the name of the stage that each of its parts belongs to, before that part.
Stages = Generator[str, None, T]
# `read` is for what takes no time worth telling, such as finding the layers that some words mean: it must
# not wait for those who decode, run and encode.
STAGES = ("load", "store", "read", "prepare", "run", "finish")
# Not in the network: three of them on two cores throw each other out of the caches.
ONE_MORE = ("prepare", "finish")


class Pools:
    """As many places in each stage as it has threads; of runs there may be fewer at one time.

    `after` is called when somebody's work is over.

    Work keeps the place of its first stage until all of it is done: what was begun ends before more is
    decoded, so that no pile of decoded images grows before a busy network. One more is decoded than may run,
    so that a core has something to do while its thread waits for Python's lock: an early layer was answered
    a seventh more often.

    Not `concurrent.futures`: its futures, chained to the event loop's, were a tenth of the event loop's time
    for an early layer.
    """

    def __init__(
        self,
        threads: int,
        admission: Admission,
        after: Callable[[], None],
        *,
        runs_at_once: int | None = None,
    ) -> None:
        self._admission = admission
        self._after = after
        self._free = {stage: threads + (stage in ONE_MORE) for stage in STAGES}
        self._free["run"] = runs_at_once or threads
        # Whoever is here waits for a stage of which nothing is free.
        self._waiting: dict[str, deque[_Job[Any]]] = {stage: deque() for stage in STAGES}
        self._begun = SimpleQueue[_Job[Any] | None]()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def waiting(self) -> Mapping[str, int]:
        """How much waits for a thread of each stage."""
        return {stage: len(waiting) for stage, waiting in self._waiting.items()}

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        with self._lock:
            self._is_closed = True
            dropped = [job for waiting in self._waiting.values() for job in waiting]
            for waiting in self._waiting.values():
                waiting.clear()
        for job in dropped:
            job.drop()
        for _ in self._threads:
            self._begun.put(None)
        for thread in self._threads:
            thread.join()

    async def run(
        self, stage: str, work: Callable[[], T], timer: Stopwatch | None = None, cancel: Stop | None = None
    ) -> T:
        """Run in one of a stage's threads, as `go` does."""
        return await self.go(_single(stage, work), timer or Stopwatch(), cancel)

    async def go(self, stages: Stages[T], timer: Stopwatch, cancel: Stop | None = None) -> T:
        """Run stage after stage, in the order of STAGES; the time until each begins counts as queue.

        One thread does all of them where the next one is free: its caches are warm, and work that is
        begun ends soonest. Work is not begun once its caller is cancelled; `cancel` ends what has begun.
        A thread that works on all the same counts as a request until it ends.
        """
        job = _Job(stages, timer)
        self._submit(job)
        try:
            return await job.answer
        except asyncio.CancelledError:
            job.is_abandoned = True
            if cancel is not None:
                cancel.set()
            if not (job.is_over or self._withdraw(job)):
                job.over = self._admission.abandoned()
            raise
        finally:
            # An error's traceback holds this frame, which must not hold the error: a cycle would keep the
            # request's body until the next full garbage collection.
            del job
            self._after()

    def _submit(self, job: "_Job[Any]") -> None:
        with self._lock:
            if not self._is_closed:
                if self._enters(job, job.home):
                    self._begin(job)
                return
        job.drop()

    def _withdraw(self, job: "_Job[Any]") -> bool:
        """Drop what nobody waits for any more, unless a thread works on it."""
        with self._lock:
            waits = job in self._waiting[job.here]
            if waits:
                self._waiting[job.here].remove(job)
                if job.here != job.home and (successor := self._leave(job.home)):
                    self._begin(successor)
        if waits:
            job.drop()
        return waits

    def _serve(self) -> None:
        while self._work(self._begun.get()):
            pass

    def _work(self, job: "_Job[Any] | None") -> bool:
        """Do what was begun, and go on with what follows; False when the threads end."""
        is_open = job is not None
        while job is not None:
            if job.asked is not None:
                job.timer.since("queue", job.asked)
            job = self._next(job, job.part())
        return is_open

    def _next(self, job: "_Job[Any]", following: str | None) -> "_Job[Any] | None":
        """What this thread does now: whoever waited for a place that is left, or else the next part.

        Whoever waited was to run, and a core that looks for its next work idles for a while.
        """
        with self._lock:
            left = {job.here: None, job.home: None}
            if following is not None:
                del left[job.home]
            ready = [successor for stage in left if (successor := self._leave(stage))]
            if following is not None and self._enters(job, following):
                ready.append(job)
            for other in ready[1:]:
                self._begin(other)
            self._idle += not ready
            if ready[:1] == [job]:
                job.asked = None
        return ready[0] if ready else None

    def _enters(self, job: "_Job[Any]", stage: str) -> bool:
        """Whether there is a place, which it takes; else it waits. What has begun, a closing service ends."""
        job.here, job.asked = stage, time.perf_counter()
        if not (self._free[stage] or self._is_closed):
            self._waiting[stage].append(job)
            return False
        self._free[stage] -= 1
        return True

    def _leave(self, stage: str) -> "_Job[Any] | None":
        """Give a place back, to who waits for it."""
        if self._waiting[stage]:
            return self._waiting[stage].popleft()
        self._free[stage] += 1
        return None

    def _begin(self, job: "_Job[Any]") -> None:
        """Hand over to a thread that has nothing to do, or to one more: never more than may work at once."""
        self._begun.put(job)
        if self._idle:
            self._idle -= 1
            return
        self._threads.append(
            threading.Thread(target=self._serve, name=f"work-{len(self._threads)}", daemon=True)
        )
        self._threads[-1].start()


class _Job(Generic[T]):
    """Work on its way through the stages; `answer` lives on the event loop, as what changes it does."""

    def __init__(self, stages: Stages[T], timer: Stopwatch) -> None:
        self.timer = timer
        self.home = self.here = next(stages)
        self.asked: float | None = None  # Since when it waits, where it does.
        self.is_abandoned = False
        self.is_over = False
        self.over: Callable[[], None] | None = None
        self._stages = stages
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[T] = self._loop.create_future()

    def part(self) -> str | None:
        """In a thread: do the next part; the name of the stage after it, None after the last."""
        if self.is_abandoned:
            self.drop()
            return None
        try:
            return next(self._stages)
        except StopIteration as end:
            self._tell(self._succeed, end.value)
        except BaseException as error:
            # Without this frame, and so without those behind it, which hold the job.
            behind = error.__traceback__.tb_next if error.__traceback__ else None
            self._tell(self._fail, error.with_traceback(behind))
        return None

    def drop(self) -> None:
        """Give up what nobody waits for, or what a closing service does not begin."""
        self._stages.close()
        self._tell(self._fail, Stopped())

    def _tell(self, end: Callable[[Any], None], how: object) -> None:
        # A loop that has ended has no callers who wait.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, end, how)

    def _end(self, end: Callable[[Any], None], how: object) -> None:
        self.is_over = True
        if not self.answer.done():
            end(how)
        if self.over is not None:
            self.over()

    def _succeed(self, value: T) -> None:
        self.answer.set_result(value)

    def _fail(self, error: BaseException) -> None:
        self.answer.set_exception(error)


def _single(stage: str, work: Callable[[], T]) -> Stages[T]:
    yield stage
    return work()


class InStage:
    """Calls blocking functions in the threads of one stage."""

    def __init__(self, pools: Pools, stage: str) -> None:
        self._pools = pools
        self._stage = stage

    async def __call__(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Call in a thread, and wait for the result."""
        return await self._pools.run(self._stage, partial(work, *given, **named))
