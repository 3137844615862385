"""The pipeline: one request from its admission to its answer, each stage in a bounded number of threads."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from service.engine.catalog import Catalog
from service.engine.inspector import Inspector
from service.engine.loaded import LoadedModel
from service.engine.plan_cache import PlanCache
from service.errors import DeadlineExceeded
from service.intake.store import ImageStore
from service.pipeline.admission import Admission, Permit
from service.pipeline.batches import Batches
from service.pipeline.figures import Figures
from service.pipeline.images import KeptImages
from service.pipeline.models import Models
from service.pipeline.pools import InStage, Pools
from service.pipeline.prepare import KeptImageRequest, check_size
from service.pipeline.request import BodyRequest, Computation, Request
from service.pipeline.shared import Shared, SingleFlight
from service.pipeline.strategies import Batched, FromKept, Plain, kept_bytes
from service.pipeline.tally import Tallies
from service.pipeline.uploads import Uploads
from service.values import Layer, Limits, Payload

P = ParamSpec("P")
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
        self._pools = pools = Pools(threads, admission, self._rest, runs_at_once=runs_at_once)
        self.batches = Batches(pools, max_batch_pixels, runs_at_once) if max_batch_pixels else None
        self._answers = SingleFlight()
        self._shared = Shared(map_cache_bytes, kept_bytes)
        self._inspector = inspector
        self.models = Models(catalog, InStage(pools, "load"))
        self.uploads = Uploads(upload_paths, inspector, InStage(pools, "load"))
        self.images = KeptImages(store, limits, InStage(pools, "store"), decoding=InStage(pools, "prepare"))
        self._from_kept = FromKept(pools, self.images, self._shared, self._count_run)
        self._from_body: Plain | Batched = Plain(pools, self._count_run)
        if self.batches:
            self._from_body = Batched(pools, self.batches, self._count_run)

    def figures(self) -> Figures:
        """What is counted about the inside, now."""
        entries = self.catalog.entries.values()
        ready = [(entry.name, v) for entry in entries for v in entry.versions if v.state == "ready"]
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
            states=Counter(entry.summary().state for entry in entries),
            load_seconds={(name, v.version): v.load_seconds for name, v in ready if v.load_seconds},
        )

    def observe_batches(self, observe: Callable[[int, int], None]) -> None:
        """Call `observe` with the requests and the pixels of each shared batch, on the event loop."""
        if self.batches is not None:
            self.batches.observers.append(observe)

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
        permit: Permit | None = None,
    ) -> Selected:
        """The layers that the words mean at an input size: also the dry run of a request.

        A `permit` has a deadline; the command line waits as long as a model takes to load.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, LayerNotFound, InvalidParameter, CapacityError
        """
        check_size(size, self.limits)
        async with self.bounded(permit) if permit else nullcontext():
            model = await self.models.get(name, version)
            return await self.in_thread(_select, model, words, size)

    async def find(
        self, name: str, version: str | None, permit: Permit, timeout_s: float | None = None
    ) -> LoadedModel:
        """A model; while it loads, the request has a place and a deadline as for its maps.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, CapacityError
        """
        if (model := self.catalog.entry(name).peek(version)) is None:
            async with self.bounded(permit, timeout_s):
                model = await self.models.get(name, version)
        permit.model = model.identity
        return model

    async def answer(self, request: Request, permit: Permit | None = None) -> Payload:
        """Answer a request; equal requests at the same time are computed once.

        Its slot is given back as soon as the answer is there; that is held, as bytes, until it has been
        sent. Without a `permit`, as in the command line, nothing is held afterwards.

        Raises:
            RequestError, CapacityError, ModelError
        """
        with nullcontext(permit) if permit else self.admission.permit() as permit:
            async with self.bounded(permit, request.timeout_s):
                model = await self.models.get(request.model, request.version)
                permit.model = model.identity
                with self.tallies.counting(model.identity) as count:
                    key, compute = request.key(model.identity), partial(self._compute, request, model, permit)
                    payload = await self._answers.join(key, compute)
                    count.images = payload.images
            permit.add(payload.size)
            if payload.coding:
                before, after = self._coded
                self._coded = (before + payload.uncoded_bytes, after + payload.size)
            return payload

    async def in_thread(self, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Run what would hold up the event loop, such as parsing a long body, in a thread."""
        return await self._pools.run("read", partial(work, *given, **named))

    async def _compute(self, request: Request, model: LoadedModel, first: Permit) -> Payload:
        with first.for_computation() as permit:
            computation = Computation(request, model, self.limits, self.runtime, first.timer, permit)
            if isinstance(request, KeptImageRequest):
                payload = await self._from_kept.answer(request, computation)
            else:
                assert isinstance(request, BodyRequest)
                payload = await self._from_body.answer(request, computation)
        self.tallies.ran(model.identity, payload.images, payload.timings)
        return payload

    def _count_run(self) -> None:
        self.runs += 1

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

    @asynccontextmanager
    async def bounded(self, permit: Permit, timeout_s: float | None = None) -> AsyncIterator[None]:
        """A place among the requests, and a deadline for what is done within.

        Raises:
            Overloaded, DeadlineExceeded
        """
        allowed = min(timeout_s or self.limits.timeout_s, self.limits.timeout_s)
        permit.acquire()
        try:
            async with asyncio.timeout(allowed):
                yield
        except TimeoutError as error:
            detail = f"no answer within the request's {allowed:g} seconds"
            raise DeadlineExceeded(detail, limit=allowed) from error
        finally:
            permit.release()


def _select(model: LoadedModel, words: Sequence[str], size: tuple[int, int] | None) -> Selected:
    table = model.layers(size)
    layers = table.select(words)
    return Selected(model, layers, model.total_macs(table, layers))
