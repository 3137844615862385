"""The order of one request's steps, and which thread each runs on."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from service.engine.catalog import Catalog
from service.engine.loaded import LoadedModel
from service.errors import DeadlineExceeded, Overloaded
from service.intake.store import ImageStore
from service.output import coding
from service.output.table import choose_format
from service.pipeline.answers import Answer, ArraysAnswer, JsonAnswer, file_name
from service.pipeline.images import KeptImages
from service.pipeline.prepare import Ready, Source, check_size, decode_all, place, prepare, select
from service.pipeline.shared import Shared
from service.pipeline.stopwatch import Stopwatch
from service.pipeline.views import PictureAnswer, StatisticsAnswer
from service.values import Drawing, FeatureMap, Job, Layer, Limits, Payload

T = TypeVar("T")
STAGES = ("load", "store", "prepare", "run", "finish")
RETRY_AFTER_S = 1


@dataclass(frozen=True, eq=False)
class Selected:
    """Layers of a model, and the multiply-accumulates of everything that they need, counted once."""

    model: LoadedModel
    layers: tuple[Layer, ...]
    total_macs: int | None


class Pipeline:
    """Runs jobs: prepare, run and finish each have threads of their own, so none starves another."""

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        store: ImageStore,
        *,
        runtime: str,
        threads: int,
        max_in_flight: int,
        map_cache_bytes: int,
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self.runtime = runtime
        self.images = KeptImages(store, limits, functools.partial(self._in, "store"))
        self.runs = 0
        self._shared = Shared(map_cache_bytes, _held_bytes)
        self._in_flight = 0
        self._max_in_flight = max_in_flight
        self._pools = {stage: ThreadPoolExecutor(threads, stage) for stage in STAGES}

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)
        self.images.close()

    async def load_all(self) -> None:
        """Load every model's default version, off the event loop."""
        await self._in("load", Stopwatch(), self.catalog.load_all)

    async def model(self, name: str, version: str | None) -> LoadedModel:
        """The model, loading it in a thread where it is not.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed
        """
        if (ready := self.catalog.entry(name).peek(version)) is not None:
            return ready
        return await self._in("load", Stopwatch(), self.catalog.get, name, version)

    async def layers(
        self, name: str, version: str | None, words: Sequence[str], size: tuple[int, int] | None
    ) -> Selected:
        """The layers that the words mean at an input size: also the dry run of a request.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, LayerNotFound, InvalidParameter
        """
        check_size(size, self.limits)
        model = await self.model(name, version)
        return await self.in_thread(_select, model, words, size)

    async def extract(self, job: Job) -> Payload:
        """Feature maps as a file of arrays.

        Raises:
            RequestError, CapacityError, ModelError
        """
        kind = choose_format(job.format, job.accept)
        return await self._work(job, ArraysAnswer(job, kind, limits=self.limits, runtime=self.runtime))

    async def extract_json(self, job: Job) -> Payload:
        """Feature maps as JSON numbers.

        Raises:
            RequestError, CapacityError, ModelError
        """
        return await self._work(job, JsonAnswer(job, limits=self.limits))

    async def render(self, job: Job, drawing: Drawing) -> Payload:
        """One map of one image as a picture.

        Raises:
            RequestError, CapacityError, ModelError
        """
        return await self._work(job, PictureAnswer(job, drawing))

    async def describe(self, job: Job) -> Payload:
        """Statistics of feature maps as JSON.

        Raises:
            RequestError, CapacityError, ModelError
        """
        return await self._work(job, StatisticsAnswer(max_bytes=self.limits.json_answer_bytes))

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run what would hold up the event loop, such as parsing a long body, in a thread of prepare's."""
        return await self._in("prepare", Stopwatch(), work, *given)

    async def _work(self, job: Job, answer: Answer) -> Payload:
        watch = Stopwatch()
        async with self._place(job.timeout_s):
            model = await self.model(job.model, job.version)
            if job.image_id is None:
                ready = await self._in(
                    "prepare", watch, prepare, job, model, answer.check, self.limits, watch
                )
                maps = await self._run(ready, ready.layers)
            else:
                ready, maps = await self._from_kept(job, model, answer, watch)
            return await self._in("finish", watch, _finish, ready, maps, answer)

    async def _from_kept(
        self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch
    ) -> tuple[Ready, list[FeatureMap]]:
        """The same for a kept image, whose picture and maps may be at hand or under way."""
        layers = await self._in(
            "prepare",
            watch,
            functools.partial(select, job, model, answer.check, self.limits, size=job.size, images=1),
        )
        origin = (model.identity, job.image_id, job.size)

        async def decoded(_: Sequence[Hashable]) -> dict[Hashable, Source]:
            whole = replace(job, images=(await self.images.body(job.owner, job.image_id or ""),))
            return {origin: await self._in("prepare", watch, decode_all, whole, model, self.limits, watch)}

        source = (await self._shared.get([origin], decoded))[origin]
        ready = await self._in("prepare", watch, place, job, model, layers, source, answer.check, watch)

        async def computed(keys: Sequence[Hashable]) -> dict[Hashable, FeatureMap]:
            missing = tuple(layer for layer in layers if (origin, layer.name) in keys)
            return {(origin, m.layer.name): m for m in await self._run(ready, missing)}

        found = await self._shared.get([(origin, layer.name) for layer in layers], computed)
        return ready, [found[origin, layer.name] for layer in layers]

    async def _run(self, ready: Ready, layers: Sequence[Layer]) -> list[FeatureMap]:
        self.runs += 1
        return await self._in("run", ready.watch, _run, ready, layers)

    @asynccontextmanager
    async def _place(self, timeout_s: float) -> AsyncIterator[None]:
        """A place among the jobs in flight, until the job's deadline."""
        if self._in_flight >= self._max_in_flight:
            raise Overloaded(
                f"{self._in_flight} requests are in flight, as many as this service takes",
                retry_after_s=RETRY_AFTER_S,
            )
        allowed = min(timeout_s, self.limits.timeout_s)
        self._in_flight += 1
        try:
            async with asyncio.timeout(allowed):
                yield
        except TimeoutError as error:
            detail = f"no answer within the request's {allowed:g} seconds"
            raise DeadlineExceeded(detail, limit=allowed) from error
        finally:
            self._in_flight -= 1

    async def _in(self, stage: str, watch: Stopwatch, work: Callable[..., T], *given: Any) -> T:
        """Run in one of a stage's threads; the time until one is free counts as queue.

        What nobody waits for any more is not begun. A thread that already works cannot be stopped,
        so its job keeps a place among those in flight until it ends.
        """
        asked = time.perf_counter()

        def started() -> T:
            watch.add("queue", time.perf_counter() - asked)
            return work(*given)

        loop, future = asyncio.get_running_loop(), self._pools[stage].submit(started)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not (future.cancelled() or future.done()):
                self._in_flight += 1
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
            raise

    def _leave(self) -> None:
        self._in_flight -= 1


def _select(model: LoadedModel, words: Sequence[str], size: tuple[int, int] | None) -> Selected:
    table = model.layers(size)
    layers = table.select(words)
    return Selected(model, layers, model.total_macs(table, layers))


def _run(ready: Ready, layers: Sequence[Layer]) -> list[FeatureMap]:
    with ready.watch.measure("run"):
        values = ready.model.run(ready.prepared.tensor, layers)
    return [FeatureMap(layer, values[layer.name]) for layer in layers]


def _held_bytes(value: Source | FeatureMap) -> int:
    return value.held_bytes if isinstance(value, Source) else int(value.values.nbytes)


def _finish(ready: Ready, maps: Sequence[FeatureMap], answer: Answer) -> Payload:
    """Encode and, where the client takes it and it pays, compress."""
    encoded, wanted, packed = answer.finish(ready, maps), ready.job.coding, None
    if wanted and not encoded.media_type.startswith("image/"):
        with ready.watch.measure("compress"):
            packed = coding.encode(encoded.chunks, wanted)
    return Payload(
        chunks=packed or encoded.chunks,
        media_type=encoded.media_type,
        file_name=file_name(ready, encoded.extension),
        model=ready.model.identity,
        timings=ready.watch.seconds,
        coding=wanted if packed else None,
        headers=encoded.headers,
    )
