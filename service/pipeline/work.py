"""The order of one request's steps, and which thread each runs on."""

import asyncio
import functools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from service.engine.catalog import Catalog
from service.engine.inspector import Inspector
from service.engine.loaded import LoadedModel
from service.engine.plan_cache import PlanCache
from service.engine.runner import Stop
from service.engine.selection import held_bytes
from service.errors import DeadlineExceeded
from service.intake.store import ImageStore
from service.output import coding
from service.output.table import find_format
from service.pipeline.admission import Admission, Visit
from service.pipeline.answers import Answer, ArraysAnswer, JsonAnswer, file_name, map_of
from service.pipeline.batches import Batches
from service.pipeline.figures import Figures, ModelFigures
from service.pipeline.identical import identical
from service.pipeline.images import KeptImages
from service.pipeline.inference import InferenceAnswer, compute, prepare_inference
from service.pipeline.models import Models
from service.pipeline.pools import Pools, Stages
from service.pipeline.prepare import Ready, Source, check_size, decode_all, place, prepare, select_for_one
from service.pipeline.shared import Flights, Known, Shared
from service.pipeline.stopwatch import Stopwatch
from service.pipeline.tally import Tallies
from service.pipeline.uploads import Uploads
from service.pipeline.views import PictureAnswer, StatisticsAnswer
from service.values import Array, Drawing, Job, Layer, Limits, Parts, Payload, Step

T = TypeVar("T")
REST_AFTER_S = 5.0


@dataclass(frozen=True, eq=False)
class Selected:
    """Layers of a model, and the multiply-accumulates of everything that they need, counted once."""

    model: LoadedModel
    layers: tuple[Layer, ...]
    total_macs: int | None


class Pipeline:
    """Runs jobs, each stage in a bounded number of threads and none on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        store: ImageStore,
        admission: Admission,
        *,
        runtime: str,
        give_back: Callable[[], None],
        threads: int,
        runs_at_once: int,
        map_cache_bytes: int,
        max_batch_pixels: int,
        plans: PlanCache,
        inspector: Inspector,
        upload_paths: Sequence[Path],
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self.runtime = runtime
        self.admission = admission
        self.runs = 0
        self._plans = plans
        self._coded = (0, 0)
        self.tallies = Tallies()
        self._give_back = give_back
        self._resting: asyncio.TimerHandle | None = None
        self._pools = Pools(threads, admission, self._rest, runs_at_once=runs_at_once)
        self._batches = Batches(self._pools, max_batch_pixels, runs_at_once) if max_batch_pixels else None
        self._answers = Flights()
        self._shared = Shared(map_cache_bytes, _held_bytes)
        self._inspector = inspector
        self.models = Models(catalog, functools.partial(self._pools.run, "load"))
        self.uploads = Uploads(upload_paths, inspector, functools.partial(self._pools.run, "load"))
        storing, decoding = (functools.partial(self._pools.run, stage) for stage in ("store", "prepare"))
        self.images = KeptImages(store, limits, storing, decoding=decoding)

    def figures(self) -> Figures:
        """What is counted about the inside, now."""
        versions = [(e.name, v) for e in self.catalog.entries.values() for v in e.versions]
        return Figures(
            requests=self.admission.requests,
            max_requests=self.admission.max_requests,
            held_bytes=self.admission.held_bytes,
            max_held_bytes=self.admission.max_bytes,
            queued=self._pools.waiting,
            joined=self._answers.joined,
            plans=self._plans.figures(),
            max_plan_bytes=self._plans.budget_bytes,
            cache_hits=self._shared.hits,
            cache_misses=self._shared.misses,
            cache_bytes=self._shared.kept_bytes,
            max_cache_bytes=self._shared.max_bytes,
            coded=self._coded,
            states=Counter(entry.summary().state for entry in self.catalog.entries.values()),
            models=[
                ModelFigures(n, v.version, v.load_seconds)
                for n, v in versions
                if v.state == "ready" and v.load_seconds
            ],
            batch_sizes=self._batches.sizes if self._batches else None,
            batch_pixels=self._batches.pixels if self._batches else None,
        )

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        self._inspector.close()
        self._pools.close()
        self.images.close()

    async def layers(
        self,
        name: str,
        version: str | None,
        words: Sequence[str],
        size: tuple[int, int] | None,
        visit: Visit | None = None,
    ) -> Selected:
        """The layers that the words mean at an input size: also the dry run of a request.

        A `visit` has a deadline; the command line waits as long as a model takes to load.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, LayerNotFound, InvalidParameter, CapacityError
        """
        check_size(size, self.limits)
        async with self.bounded(visit) if visit else nullcontext():
            model = await self.models.get(name, version)
            return await self.in_thread(_select, model, words, size)

    async def find(
        self, name: str, version: str | None, visit: Visit, timeout_s: float | None = None
    ) -> LoadedModel:
        """A model; while it loads, the request has a place and a deadline as for its maps.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, CapacityError
        """
        if (model := self.catalog.entry(name).peek(version)) is None:
            async with self.bounded(visit, timeout_s):
                model = await self.models.get(name, version)
        visit.model = model.identity
        return model

    async def extract(self, job: Job, visit: Visit | None = None) -> Payload:
        """Feature maps as a file of arrays.

        Raises:
            RequestError, CapacityError, ModelError
        """
        kind = find_format(job.format)
        answer = ArraysAnswer(job, kind, limits=self.limits, runtime=self.runtime)
        return await self._work(job, answer, visit, kind.media_type)

    async def extract_json(self, job: Job, visit: Visit | None = None) -> Payload:
        """Feature maps as JSON numbers.

        Raises:
            RequestError, CapacityError, ModelError
        """
        return await self._work(job, JsonAnswer(job, limits=self.limits), visit, "numbers")

    async def render(self, job: Job, drawing: Drawing, visit: Visit | None = None) -> Payload:
        """One map of one image as a picture.

        Raises:
            RequestError, CapacityError, ModelError
        """
        return await self._work(job, PictureAnswer(job, drawing, limits=self.limits), visit, drawing)

    async def describe(self, job: Job, visit: Visit | None = None) -> Payload:
        """Statistics of feature maps as JSON.

        Raises:
            RequestError, CapacityError, ModelError
        """
        answer = StatisticsAnswer(max_bytes=self.limits.json_answer_bytes)
        return await self._work(job, answer, visit, "statistics")

    async def infer(self, job: Job, visit: Visit | None = None) -> Payload:
        """Named outputs of named inputs, as the v2 protocol has them.

        Raises:
            RequestError, CapacityError, ModelError
        """
        assert job.inference is not None
        kind = ("inference", job.inference.head_bytes)
        return await self._work(job, InferenceAnswer(job, limits=self.limits), visit, kind)

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run what would hold up the event loop, such as parsing a long body, in a thread."""
        return await self._pools.run("read", Stopwatch(), work, *given)

    async def _work(self, job: Job, answer: Answer, visit: Visit | None, kind: Hashable) -> Payload:
        """The answer, computed once for all who ask the same at the same time.

        The request's place is given back as soon as its answer is there; that is held, as bytes, until
        it has been sent.
        """
        with nullcontext(visit) if visit else self.admission.visit() as visit:
            async with self.bounded(visit, job.timeout_s):
                model = await self.models.get(job.model, job.version)
                visit.model, watch = model.identity, visit.watch
                key = (kind, model.identity, identical(job))
                with self.tallies.counting(model.identity) as count:
                    payload = await self._answers.join(key, lambda: self._answer(job, model, answer, watch))
                    count.images = payload.images
            visit.add(payload.size)
            if payload.coding:
                before, after = self._coded
                self._coded = (before + payload.uncoded_bytes, after + payload.size)
            return payload

    def _rest(self) -> None:
        """Give back what was freed, at a later moment when nobody is worked for and no answer waits."""
        if self._resting is None:
            self._resting = asyncio.get_running_loop().call_later(REST_AFTER_S, self._look)

    def _look(self) -> None:
        self._resting = None
        if self.admission.requests or self.admission.held_bytes:
            self._rest()
        else:
            asyncio.get_running_loop().run_in_executor(None, self._give_back)

    async def _answer(self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch) -> Payload:
        stop = Stop()
        with self.admission.visit() as visit:
            if job.image_id is not None:
                payload = await self._kept_answer(job, model, answer, watch, visit)
            elif self._batches is not None:
                payload = await self._batched_answer(job, model, answer, watch, visit)
            else:
                stages = self._stages(job, model, answer, watch, visit, stop)
                payload = await self._pools.go(stages, watch, stop)
        self.tallies.ran(model.identity, payload.images, payload.timings)
        return payload

    def _stages(
        self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch, visit: Visit, stop: Stop
    ) -> Stages[Payload]:
        """The usual request, in threads throughout."""
        yield "prepare"
        ready = _prepare(job, model, answer.check, self.limits, watch, stop)
        visit.take(_needed_bytes(ready))
        yield "run"
        self.runs += 1
        with watch.measure("run"):
            values = compute(ready, stop)
        yield "finish"
        return _finish(ready, values, ready.parts, answer)

    async def _batched_answer(
        self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch, visit: Visit
    ) -> Payload:
        """The same, its part of the network run together with others', where only images are its own."""
        stop = Stop()
        given = (job, model, answer.check, self.limits, watch, stop)
        ready = await self._pools.run("prepare", watch, _prepare, *given, stop=stop)
        visit.take(_needed_bytes(ready))
        self.runs += 1
        assert self._batches is not None
        if model.image_input and ready.images and not ready.prepared.others:
            values = await self._batches.run(ready)
        else:
            values = await self._pools.run("run", watch, compute, ready, stop, stop=stop)
        return await self._pools.run("finish", watch, _finish, ready, values, ready.parts, answer)

    async def _kept_answer(
        self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch, visit: Visit
    ) -> Payload:
        ready = await self._from_kept(job, model, answer, watch)
        visit.take(_needed_bytes(ready))
        values = await self._kept_maps(ready)
        return await self._pools.run("finish", watch, _finish, ready, values, {}, answer)

    async def _from_kept(self, job: Job, model: LoadedModel, answer: Answer, watch: Stopwatch) -> Ready:
        """The same for a kept image, whose decoded picture may be at hand or under way."""
        chosen = functools.partial(select_for_one, job, model, answer.check, self.limits, size=job.size)
        found = await self._pools.run("read", watch, chosen)

        async def decoded() -> Source:
            whole = replace(job, images=(await self.images.body(job.owner, job.image_id or ""),))
            return await self._pools.run("prepare", watch, decode_all, whole, model, self.limits, watch)

        # Not behind the origin, where tensors stand by names that may be any.
        source = await self._shared.get(("source", _origin(job, model)), decoded)
        return await self._pools.run("read", watch, place, job, model, found, source, answer.check, watch)

    async def _kept_maps(self, ready: Ready) -> Mapping[str, Array]:
        """Go on from the maps of the same image that are known or under way, segment after segment."""
        if ready.model.group > 1:  # Groups of copies are not worth keeping.
            stop = Stop()
            return await self._pools.run("run", ready.watch, compute, ready, stop, stop=stop)
        origin, tensor = _origin(ready.job, ready.model), ready.prepared.tensor
        known = Known(self._shared, origin)
        plan = ready.model.plan(ready.layers, known)
        self._shared.hits += len(known.values)
        values = {ready.model.image_spec().name: tensor, **known.values}
        for step in plan.steps:
            values |= await self._shared.join(
                (origin, step), functools.partial(self._kept_step, origin, step, ready, values)
            )
        return values

    async def _kept_step(
        self, origin: Hashable, step: Step, ready: Ready, values: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Run one segment, ended as soon as nobody waits for it."""
        self.runs += 1
        stop = Stop()

        def timed() -> Mapping[str, Array]:
            with ready.watch.measure("run"):
                return ready.model.run_step(step, ready.prepared.tensor, values, stop)

        made = await self._pools.run("run", ready.watch, timed, stop=stop)
        for name, value in made.items():
            self._shared.keep((origin, name), value)
        return made

    @asynccontextmanager
    async def bounded(self, visit: Visit, timeout_s: float | None = None) -> AsyncIterator[None]:
        """A place among the requests, and a deadline for what is done within.

        Raises:
            Overloaded, DeadlineExceeded
        """
        allowed = min(timeout_s or self.limits.timeout_s, self.limits.timeout_s)
        visit.enter()
        try:
            async with asyncio.timeout(allowed):
                yield
        except TimeoutError as error:
            detail = f"no answer within the request's {allowed:g} seconds"
            raise DeadlineExceeded(detail, limit=allowed) from error
        finally:
            visit.exit()


def _origin(job: Job, model: LoadedModel) -> Hashable:
    return (model.identity, job.owner, job.image_id, job.size)


def _prepare(job: Job, *given: Any) -> Ready:
    return (prepare_inference if job.inference else prepare)(job, *given)


def _select(model: LoadedModel, words: Sequence[str], size: tuple[int, int] | None) -> Selected:
    table = model.layers(size)
    layers = table.select(words)
    return Selected(model, layers, model.total_macs(table, layers))


def _needed_bytes(ready: Ready) -> int:
    """Bytes of picture, tensor, maps, as much again encoded, and two of the network's largest maps."""
    maps = ready.images * sum(map(held_bytes, ready.layers))
    return Source(ready.prepared, ready.pictures).held_bytes + 2 * (maps + ready.largest_bytes)


def _held_bytes(value: Source | Array) -> int:
    return int(value.nbytes) if isinstance(value, np.ndarray) else value.held_bytes


def _finish(ready: Ready, values: Mapping[str, Array], done: Parts, answer: Answer) -> Payload:
    """Reduce by what is not done yet, encode and, where the client takes it and it pays, compress."""
    what = ready.layers[0].name if len(ready.layers) == 1 else "layers"
    maps = [map_of(x, values[x.name], done) for x in ready.layers]
    encoded, wanted, packed = answer.finish(ready, maps), ready.job.coding, None
    if wanted and not encoded.media_type.startswith("image/"):
        with ready.watch.measure("compress"):
            packed = coding.encode(encoded.chunks, wanted)
    return Payload(
        chunks=packed or encoded.chunks,
        media_type=encoded.media_type,
        file_name=file_name(ready.model.identity.name, what, encoded.extension),
        model=ready.model.identity,
        timings=ready.watch.seconds,
        coding=wanted if packed else None,
        uncoded_bytes=sum(map(len, encoded.chunks)),
        headers=encoded.headers,
        images=ready.images,
    )
