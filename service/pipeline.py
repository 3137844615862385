"""The order of one request's steps, which thread each runs on, and how long each took."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from service import __version__
from service.engine.catalog import Catalog
from service.engine.loaded import LoadedModel
from service.errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    InvalidParameter,
    NotCombinable,
    Overloaded,
    RequestError,
    TooManyImages,
)
from service.intake.decode import decode
from service.intake.preprocess import preprocess, read_tensor
from service.output import arrays, coding
from service.output.reduce import cast, error_bound, is_numeric, itemsize
from service.output.table import ArrayFormat, choose_format
from service.values import Chunk, FeatureMap, Job, Layer, Limits, Payload, Prepared

T = TypeVar("T")
STAGES = ("load", "prepare", "run", "finish")
RETRY_AFTER_S = 1


class Stopwatch:
    """Seconds by stage, added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass(frozen=True, eq=False)
class Selected:
    """Layers of a model, and the multiply-accumulates of everything that they need, counted once."""

    model: LoadedModel
    layers: tuple[Layer, ...]
    total_macs: int | None


@dataclass(frozen=True, eq=False)
class Ready:
    """A job whose layers exist and whose answer fits, with what the network will see."""

    job: Job
    model: LoadedModel
    layers: tuple[Layer, ...]
    prepared: Prepared
    watch: Stopwatch


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder made of the maps."""

    chunks: tuple[Chunk, ...]
    media_type: str
    extension: str


# Both run in a thread: the first before anything is decoded, the second on what the network gave.
Check = Callable[[Sequence[Layer], int], None]
Finish = Callable[[Ready, Sequence[FeatureMap]], Encoded]


class Pipeline:
    """Runs jobs: prepare, run and finish each have threads of their own, so none starves another."""

    def __init__(
        self, catalog: Catalog, limits: Limits, *, runtime: str, threads: int, max_in_flight: int
    ) -> None:
        self.catalog = catalog
        self.limits = limits
        self.runtime = runtime
        self._in_flight = 0
        self._max_in_flight = max_in_flight
        self._pools = {stage: ThreadPoolExecutor(threads, stage) for stage in STAGES}

    def close(self) -> None:
        """Stop all threads; what waits is dropped."""
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

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
        self._check_size(size)
        model = await self.model(name, version)
        return await self.in_thread(_select, model, words, size)

    async def extract(self, job: Job) -> Payload:
        """Feature maps as a file of arrays.

        Raises:
            RequestError, CapacityError, ModelError
        """
        kind = choose_format(job.format, job.accept)
        limit = self.limits.answer_bytes

        def check(layers: Sequence[Layer], images: int) -> None:
            kind.check([layer.name for layer in layers], job.compress)
            _check_answer(layers, images, limit, lambda x: itemsize(x.dtype, job.dtype))

        return await self._work(job, check, lambda ready, maps: _encode_arrays(self, kind, ready, maps))

    async def extract_json(self, job: Job) -> Payload:
        """Feature maps as JSON numbers.

        Raises:
            RequestError, CapacityError, ModelError
        """
        limit = self.limits.json_answer_bytes

        def check(layers: Sequence[Layer], images: int) -> None:
            # The text's length is known only when it is written; this is the least that it can be.
            _check_answer(layers, images, limit, lambda x: arrays.least_json_bytes(x.dtype))

        def finish(ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
            who = ready.model.identity
            chunks = arrays.encode_json(maps, who.name, who.version, max_bytes=limit)
            return Encoded(chunks, "application/json", "json")

        return await self._work(job, check, finish)

    async def _work(self, job: Job, check: Check, finish: Finish) -> Payload:
        watch = Stopwatch()
        async with self._place(job.timeout_s):
            model = await self.model(job.model, job.version)
            ready = await self._in("prepare", watch, self._prepare, job, model, check, watch)
            maps = await self._in("run", watch, _run, ready)
            return await self._in("finish", watch, _finish, ready, maps, finish)

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

    async def in_thread(self, work: Callable[..., T], *given: Any) -> T:
        """Run what would hold up the event loop, such as parsing a long body, in a thread of prepare's."""
        return await self._in("prepare", Stopwatch(), work, *given)

    async def _in(self, stage: str, watch: Stopwatch, work: Callable[..., T], *given: Any) -> T:
        """Run in one of a stage's threads; the time until one is free counts as queue."""
        asked = time.perf_counter()

        def started() -> T:
            watch.add("queue", time.perf_counter() - asked)
            return work(*given)

        return await asyncio.get_running_loop().run_in_executor(self._pools[stage], started)

    def _prepare(self, job: Job, model: LoadedModel, check: Check, watch: Stopwatch) -> Ready:
        """Refuse cheaply first; then decode and preprocess."""
        spec = model.image_spec()
        ready_tensor, size = None, job.size
        if job.tensor is not None:
            if size is not None:
                raise NotCombinable("size is for images; a ready tensor has its own")
            ready_tensor = read_tensor(job.tensor, spec)
            rows = ready_tensor.tensor.shape
            size = (rows[2], rows[3]) if spec.layout == "NCHW" else (rows[1], rows[2])
        self._check_size(size)
        layers = model.layers(size).select(job.layers)
        images = len(job.images) if ready_tensor is None else len(ready_tensor.tensor)
        self._check_images(images)
        check(layers, images)
        prepared = ready_tensor or self._prepare_images(job, model, watch)
        return Ready(job, model, layers, prepared, watch)

    def _prepare_images(self, job: Job, model: LoadedModel, watch: Stopwatch) -> Prepared:
        spec, recipe = model.image_spec(), model.recipe_at(job.size)
        parts = []
        for index, image in enumerate(job.images):
            try:
                with watch.measure("decode"):
                    picture = decode(image, max_pixels=self.limits.pixels)
                with watch.measure("preprocess"):
                    parts.append(preprocess(picture, recipe, spec))
            except RequestError as error:
                error.extensions["index"] = index
                raise
        if len(parts) == 1:
            return parts[0]
        placements = tuple(placement for part in parts for placement in part.placements)
        return Prepared(np.concatenate([part.tensor for part in parts]), placements)

    def _check_size(self, size: tuple[int, int] | None) -> None:
        if size is not None and size[0] * size[1] > self.limits.size_pixels:
            raise InvalidParameter(
                f"{size[0]}x{size[1]} is {size[0] * size[1]} pixels; at most "
                f"{self.limits.size_pixels} are fed to a network here",
                parameter="size",
                limit=self.limits.size_pixels,
                actual=size[0] * size[1],
            )

    def _check_images(self, images: int) -> None:
        if images > self.limits.images:
            raise TooManyImages(
                f"{images} images were sent; at most {self.limits.images} are taken in one request",
                limit=self.limits.images,
                actual=images,
            )


def _select(model: LoadedModel, words: Sequence[str], size: tuple[int, int] | None) -> Selected:
    table = model.layers(size)
    layers = table.select(words)
    return Selected(model, layers, model.total_macs(table, layers))


def _run(ready: Ready) -> list[FeatureMap]:
    with ready.watch.measure("run"):
        values = ready.model.run(ready.prepared.tensor, ready.layers)
    return [FeatureMap(layer, values[layer.name]) for layer in ready.layers]


def _finish(ready: Ready, maps: Sequence[FeatureMap], finish: Finish) -> Payload:
    """Reduce, encode and, where the client takes it and it pays, compress."""
    watch, wanted = ready.watch, ready.job.coding
    with watch.measure("reduce"):
        maps = [cast(feature_map, ready.job.dtype) for feature_map in maps]
    with watch.measure("encode"):
        encoded = finish(ready, maps)
    packed = None
    if wanted:
        with watch.measure("compress"):
            packed = coding.encode(encoded.chunks, wanted)
    return Payload(
        chunks=packed or encoded.chunks,
        media_type=encoded.media_type,
        file_name=_file_name(ready, encoded.extension),
        model=ready.model.identity,
        timings=watch.seconds,
        coding=wanted if packed else None,
    )


def _encode_arrays(
    pipeline: Pipeline, kind: ArrayFormat, ready: Ready, maps: Sequence[FeatureMap]
) -> Encoded:
    metadata = _metadata(pipeline, ready) if kind.carries_metadata else {}
    chunks = kind.encode(maps, metadata, ready.job.compress)
    return Encoded(chunks, kind.media_type, kind.extension)


def _metadata(pipeline: Pipeline, ready: Ready) -> Mapping[str, Any]:
    """What was done, as it travels with the bytes."""
    model, tensor, dtype = ready.model, ready.prepared.tensor, ready.job.dtype
    return {
        "service": f"featuremaps {__version__}",
        "runtime": pipeline.runtime,
        "provider": model.provider,
        "graph_optimization": model.graph_optimization,
        **asdict(model.identity),
        "images": len(tensor),
        "input_shape": tensor.shape,
        # The tensor that the network saw, C order, in the graph's own dtype.
        "input_sha256": hashlib.sha256(tensor.data).hexdigest(),
        "preprocessing": _recipe(ready),
        "layers": [layer.name for layer in ready.layers],
        "dtype": dtype,
        "error_bound": {x.name: error_bound(x.dtype, dtype) for x in ready.layers},
    }


def _recipe(ready: Ready) -> Mapping[str, Any] | None:
    """None for a ready tensor: then nothing was done to it."""
    if ready.job.tensor is not None:
        return None
    return asdict(ready.model.recipe_at(ready.job.size))


def _check_answer(
    layers: Sequence[Layer], images: int, limit: int, value_bytes: Callable[[Layer], int]
) -> None:
    """Refuse an answer over the limit before anything runs; a layer of unknown shape counts nothing."""
    for layer in layers:
        if not is_numeric(layer.dtype):
            raise InvalidParameter(
                f"layer {layer.name!r} holds {layer.dtype}, not numbers that a format carries",
                parameter="layers",
            )
    total = images * sum(_elements(layer) * value_bytes(layer) for layer in layers)
    if total > limit:
        raise AnswerTooLarge(
            f"{len(layers)} layers for {images} image(s) are {total} bytes and at most {limit} are sent: "
            "ask for fewer layers, dtype=float16, a smaller size or fewer images "
            "(list_layers shows the bytes of each)",
            limit=limit,
            actual=total,
        )


def _elements(layer: Layer) -> int:
    sizes = layer.shape or (0,)
    return 0 if None in sizes else int(np.prod([size or 0 for size in sizes], dtype=object))


def _file_name(ready: Ready, extension: str) -> str:
    """A safe name: the model's, and the layer's where there is one."""
    first = ready.layers[0].name if len(ready.layers) == 1 else "layers"
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", first).strip("-.")[:80]
    return f"{ready.model.identity.name}-{safe or 'layer'}.{extension}"
