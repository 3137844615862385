"""Requests that wait for the network at the same time share a batch of what they have in common.

Nobody waits for others to come: whoever finds the network free runs, and takes along what came meanwhile.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from service.engine.loaded import Outcome
from service.engine.runner import Stop
from service.pipeline.pools import Pools
from service.pipeline.request import Ready
from service.pipeline.stopwatch import Stopwatch
from service.values import Array


@dataclass(frozen=True, eq=False)
class _Waiting:
    ready: Ready
    outcome: asyncio.Future[Mapping[str, Array]]
    since: float

    @property
    def pixels(self) -> int:
        """Of all its images as the network sees them."""
        model = self.ready.model
        channel_axis = 1 if model.image_spec().layout == "NCHW" else 3
        return int(self.ready.prepared.tensor.size) // model.image_shape()[channel_axis]


class Batches:
    """Lives on the event loop; at most `max_pixels` share a batch, one request at least.

    `at_once` are under way at one time: one that was formed early would run without who came meanwhile.
    """

    def __init__(self, pools: Pools, max_pixels: int, at_once: int) -> None:
        self._pools = pools
        self.max_pixels = max_pixels
        # By the model and the images' shape; who came first is in the first of them.
        self.waiting: dict[Hashable, list[_Waiting]] = {}
        self.free_slots = at_once
        self._running: set[asyncio.Task[None]] = set()  # The loop itself holds tasks weakly.
        # Called with the requests and the pixels of each batch.
        self.observers: list[Callable[[int, int], None]] = []

    async def run(self, ready: Ready) -> Mapping[str, Array]:
        """The maps of one job.

        Raises:
            ModelFailed, ShapeMismatch: of this job; others that shared its batch are not harmed.
        """
        waiting = _Waiting(ready, asyncio.get_running_loop().create_future(), time.perf_counter())
        key = (ready.model.identity, ready.prepared.tensor.shape[1:])
        self.waiting.setdefault(key, []).append(waiting)
        if self.free_slots:
            self.free_slots -= 1
            running = asyncio.create_task(self._run_waiting())
            self._running.add(running)
            running.add_done_callback(self._running.discard)
        try:
            return await waiting.outcome
        except asyncio.CancelledError:
            self._drop(key, waiting)
            raise
        finally:
            # An error's traceback holds this frame, which must not hold the error.
            del waiting

    def _drop(self, key: Hashable, waiting: _Waiting) -> None:
        """Let go of what nobody waits for any more, unless it runs; those beside it keep their turn."""
        others = self.waiting.get(key, [])
        if waiting in others:
            others.remove(waiting)
        if not others:
            self.waiting.pop(key, None)

    async def _run_waiting(self) -> None:
        """Run batch after batch until nobody waits; what did not fit into one goes behind the others."""
        try:
            while self.waiting:
                if batch := self._take(next(iter(self.waiting))):
                    await self._run(batch)
        finally:
            self.free_slots += 1

    async def _run(self, batch: list[_Waiting]) -> None:
        for observe in self.observers:
            observe(len(batch), sum(one.pixels for one in batch))
        stop = Stop()
        for one in batch:
            one.outcome.add_done_callback(lambda _: _stop_if_alone(batch, stop))
        try:
            outcomes = await self._pools.run("run", partial(_together, batch, stop))
        except Exception as error:
            outcomes = [error.with_traceback(None)] * len(batch)
        for one, outcome in zip(batch, outcomes, strict=True):
            _settle(one.outcome, outcome)
        # An error's traceback holds the frames that hold this list, and so it would hold itself.
        batch.clear()

    def _take(self, key: Hashable) -> list[_Waiting]:
        """Those who came first, as many as the budget allows; who has left is left out."""
        waiting = [one for one in self.waiting.pop(key, []) if not one.outcome.done()]
        total = 0

        def fits(one: _Waiting) -> bool:
            nonlocal total
            total += one.pixels
            return total <= self.max_pixels or one is waiting[0]

        batch = list(takewhile(fits, waiting))
        if rest := waiting[len(batch) :]:
            self.waiting[key] = rest
        return batch


def _together(batch: Sequence[_Waiting], stop: Stop) -> Sequence[Outcome]:
    """Each request is told all of the time that its batch took."""
    model = batch[0].ready.model
    jobs = [(one.ready.prepared.tensor, one.ready.layers, one.ready.parts) for one in batch]
    _count("queue", [(one.ready.timer, one.since) for one in batch])
    start = time.perf_counter()
    try:
        return model.run_together(jobs, stop)
    finally:
        _count("run", [(one.ready.timer, start) for one in batch])


def _count(stage: str, starts: Sequence[tuple[Stopwatch, float]]) -> None:
    for timer, start in starts:
        timer.since(stage, start)


def _stop_if_alone(batch: Sequence[_Waiting], stop: Stop) -> None:
    """One caller leaving ends nothing that another waits for."""
    if all(one.outcome.cancelled() for one in batch):
        stop.set()


def _settle(future: asyncio.Future[Mapping[str, Array]], outcome: Outcome) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
