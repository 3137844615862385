"""The threads that do the work: each stage has its own, so that none starves another."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from service.engine.runner import Stop
from service.pipeline.admission import Admission
from service.pipeline.stopwatch import Stopwatch

T = TypeVar("T")
STAGES = ("load", "store", "prepare", "run", "finish")


class Pools:
    """As many threads for each stage; what waits for one is bounded by the places of the admission."""

    def __init__(self, threads: int, admission: Admission) -> None:
        self._admission = admission
        self._pools = {stage: ThreadPoolExecutor(threads, stage) for stage in STAGES}

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    async def run(
        self, stage: str, watch: Stopwatch, work: Callable[..., T], *given: Any, stop: Stop | None = None
    ) -> T:
        """Run in one of a stage's threads; the time until one is free counts as queue.

        What nobody waits for any more is not begun, and `stop` ends what has begun. A thread that
        works on all the same takes a place among the requests until it ends.
        """
        asked = time.perf_counter()

        def started() -> T:
            watch.add("queue", time.perf_counter() - asked)
            return work(*given)

        future = self._pools[stage].submit(started)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            if not (future.cancelled() or future.done()):
                self._linger(future)
            raise

    def _linger(self, future: Future[Any]) -> None:
        loop = asyncio.get_running_loop()
        self._admission.requests += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._admission.leave))
