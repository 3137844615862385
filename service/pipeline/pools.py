"""The threads that do the work: each stage has its own, so that none starves another."""

import asyncio
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from service.engine.runner import Stop, Stopped
from service.pipeline.admission import Admission
from service.pipeline.stopwatch import Stopwatch

T = TypeVar("T")
# Work that yields the name of the stage that each of its parts belongs to, before that part.
Stages = Generator[str, None, T]
# `read` is for what takes no time worth telling, such as finding the layers that some words mean: it must
# not wait for those who decode, run and encode.
STAGES = ("load", "store", "read", "prepare", "run", "finish")


class Pools:
    """As many threads for each stage. `after` is called when somebody's work is over.

    A thread that goes on with what it began is missing in its own stage until that is done: what was begun
    ends before more is decoded, so that no pile of decoded images grows before a busy network.
    """

    def __init__(self, threads: int, admission: Admission, after: Callable[[], None]) -> None:
        self._admission = admission
        self._after = after
        self._pools = {stage: ThreadPoolExecutor(threads, stage) for stage in STAGES}
        self._slots = {stage: threading.BoundedSemaphore(threads) for stage in STAGES}
        self._waiting = dict.fromkeys(STAGES, 0)
        self._lock = threading.Lock()

    @property
    def waiting(self) -> Mapping[str, int]:
        """How much waits for a thread of each stage."""
        return dict(self._waiting)

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    async def run(
        self, stage: str, watch: Stopwatch, work: Callable[..., T], *given: Any, stop: Stop | None = None
    ) -> T:
        """Run in one of a stage's threads, as `go` does."""
        return await self.go(_single(stage, work, *given), watch, stop)

    async def go(self, stages: Stages[T], watch: Stopwatch, stop: Stop | None = None) -> T:
        """Run stage after stage; the time until each begins counts as queue.

        One thread does all of them where the next one is free: its caches are warm, and work that is
        begun ends soonest. What nobody waits for any more is not begun, and `stop` ends what has begun.
        A thread that works on all the same takes a place among the requests until it ends.
        """
        job = _Job(stages, watch)
        self._submit(next(stages), job)
        try:
            return await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            job.is_abandoned = True
            if stop is not None:
                stop.set()
            if not job.done.done():
                self._linger(job.done)
            raise
        finally:
            # An error's traceback holds this frame, which must not hold the error: a cycle would keep the
            # request's body until the next full garbage collection.
            del job
            self._after()

    def _submit(self, stage: str, job: "_Job[Any]") -> None:
        with self._lock:
            self._waiting[stage] += 1
        queued = self._pools[stage].submit(self._work, stage, job, time.perf_counter())
        queued.add_done_callback(lambda ended: job.abandon() if ended.cancelled() else None)

    def _work(self, stage: str, job: "_Job[Any]", asked: float) -> None:
        """In a thread of the stage: do its part, and go on with the next one's or hand it over."""
        with self._slots[stage]:
            with self._lock:
                self._waiting[stage] -= 1
            job.watch.since("queue", asked)
            following = job.part()
        while following is not None and self._goes_on(following):
            stage = following
            try:
                following = job.part()
            finally:
                self._slots[stage].release()
        if following is not None:
            self._submit(following, job)

    def _goes_on(self, following: str) -> bool:
        """Whether this thread may do the next stage's part: it is free, and nobody waits for it."""
        with self._lock:
            if self._waiting[following]:
                return False
        return self._slots[following].acquire(blocking=False)

    def _linger(self, future: Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._admission.requests += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._admission.leave))


class _Job(Generic[T]):
    """Work on its way through the stages; `done` is settled exactly once."""

    def __init__(self, stages: Stages[T], watch: Stopwatch) -> None:
        self.watch = watch
        self.done: Future[T] = Future()
        self.is_abandoned = False
        self._stages = stages

    def part(self) -> str | None:
        """Do the next part; the name of the stage after it, None after the last."""
        if self.is_abandoned or not (self.done.running() or self.done.set_running_or_notify_cancel()):
            self.abandon()
            return None
        try:
            return next(self._stages)
        except StopIteration as end:
            self.done.set_result(end.value)
        except BaseException as error:
            # Without this frame, and so without those behind it, which hold the job.
            behind = error.__traceback__.tb_next if error.__traceback__ else None
            self.done.set_exception(error.with_traceback(behind))
        return None

    def abandon(self) -> None:
        """Give up what nobody waits for, or what a closing service does not begin."""
        self._stages.close()
        if not self.done.cancel() and not self.done.done():
            self.done.set_exception(Stopped())


def _single(stage: str, work: Callable[..., T], *given: Any) -> Stages[T]:
    yield stage
    return work(*given)
