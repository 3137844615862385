"""How a computation goes through its stages: plainly, in shared batches, or on from kept maps."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial

import numpy as np

from service.engine.runner import Stop
from service.engine.selection import held_bytes
from service.errors import ShapeMismatch
from service.output import coding
from service.pipeline.answers import file_name, map_of
from service.pipeline.batches import Batches
from service.pipeline.images import KeptImages
from service.pipeline.pools import Pools, Stages
from service.pipeline.prepare import KeptImageRequest, count_inputs, decode_all, place, select
from service.pipeline.request import BodyRequest, Computation, Ready, Source
from service.pipeline.shared import Known, Shared
from service.values import Array, Layer, Parts, Payload, Step


class Plain:
    """One request by itself, from its first stage to its last in threads."""

    def __init__(self, pools: Pools, count_run: Callable[[], None]) -> None:
        self._pools = pools
        self._count_run = count_run

    async def answer(self, request: BodyRequest, computation: Computation) -> Payload:
        """Prepare, run and finish.

        Raises:
            RequestError, CapacityError, ModelError
        """
        stages = self._stages(request, computation)
        return await self._pools.go(stages, computation.timer, computation.cancel)

    def _stages(self, request: BodyRequest, computation: Computation) -> Stages[Payload]:
        yield "prepare"
        ready = prepared(request, computation)
        yield "run"
        self._count_run()
        values = run(ready)
        yield "finish"
        return finish(ready, values, ready.parts)


class Batched:
    """Dynamic batching: requests for images of one model and shape share runs of the network."""

    def __init__(self, pools: Pools, batches: Batches, count_run: Callable[[], None]) -> None:
        self._pools = pools
        self._batches = batches
        self._count_run = count_run

    async def answer(self, request: BodyRequest, computation: Computation) -> Payload:
        """Prepare, run in a batch where only images come with the request, and finish.

        Raises:
            RequestError, CapacityError, ModelError
        """
        timer, cancel = computation.timer, computation.cancel
        prepare = partial(prepared, request, computation)
        ready = await self._pools.run("prepare", prepare, timer, cancel)
        self._count_run()
        if computation.model.image_input and ready.images and not ready.prepared.others:
            values = await self._batches.run(ready)
        else:
            values = await self._pools.run("run", partial(run, ready), timer, cancel)
        return await self._pools.run("finish", partial(finish, ready, values, ready.parts), timer)


class FromKept:
    """A kept image, whose decoded picture and maps are kept within a budget and shared by requests."""

    def __init__(
        self, pools: Pools, images: KeptImages, shared: Shared, count_run: Callable[[], None]
    ) -> None:
        self._pools = pools
        self._images = images
        self._shared = shared
        self._count_run = count_run

    async def answer(self, request: KeptImageRequest, computation: Computation) -> Payload:
        """Go on from what is kept of the image.

        Raises:
            RequestError, CapacityError, ModelError
        """
        key = request.maps_key(computation.model.identity)
        ready = await self._ready(request, computation, key)
        computation.permit.reserve(needed_bytes(ready))
        values = await self._maps(ready, key)
        return await self._pools.run("finish", partial(finish, ready, values, {}), computation.timer)

    async def _ready(self, request: KeptImageRequest, computation: Computation, key: Hashable) -> Ready:
        timer, images = computation.timer, count_inputs(computation.model, 1)
        chosen = await self._pools.run("read", partial(select, computation, request.size, images), timer)

        async def decoded() -> Source:
            body = await self._images.body(request.owner, request.image_id)
            return await self._pools.run("prepare", partial(decode_all, computation, (body,)), timer)

        # A layer may have any name, so the source is not among the maps, whose keys begin otherwise.
        source = await self._shared.get(("source", key), decoded)
        return await self._pools.run("read", partial(place, computation, chosen, source), timer)

    async def _maps(self, ready: Ready, key: Hashable) -> Mapping[str, Array]:
        """The maps, from those that are known or under way on, segment after segment."""
        if ready.model.group > 1:  # Groups of copies are not worth keeping.
            return await self._pools.run("run", partial(run, ready), ready.timer, ready.computation.cancel)
        known = Known(self._shared, key)
        plan = ready.model.plan(ready.layers, known)
        self._shared.hits += len(known.values)
        values = {ready.model.image_spec().name: ready.prepared.tensor, **known.values}
        for step in plan.steps:
            values |= await self._shared.join((key, step), partial(self._step, key, step, ready, values))
        return values

    async def _step(
        self, key: Hashable, step: Step, ready: Ready, values: Mapping[str, Array]
    ) -> Mapping[str, Array]:
        """Run one segment; it ends as soon as no request waits for it."""
        self._count_run()
        cancel = Stop()

        def timed() -> Mapping[str, Array]:
            with ready.timer.measure("run"):
                return ready.model.run_step(step, ready.prepared.tensor, values, cancel)

        made = await self._pools.run("run", timed, ready.timer, cancel)
        for name, value in made.items():
            self._shared.keep((key, name), value)
        return made


def prepared(request: BodyRequest, computation: Computation) -> Ready:
    """Prepare a request, and reserve what it needs from then on.

    Raises:
        RequestError, CapacityError, Stopped
    """
    ready = request.prepare(computation)
    computation.permit.reserve(needed_bytes(ready))
    return ready


def needed_bytes(ready: Ready) -> int:
    """Bytes of picture, tensor, maps, as much again encoded, and two of the network's largest maps."""
    maps = ready.images * sum(map(held_bytes, ready.layers))
    return ready.source.held_bytes + 2 * (maps + ready.largest_bytes)


def run(ready: Ready) -> Mapping[str, Array]:
    """Run the network for `ready.parts`; maps of no image are empty, and nothing runs for them.

    Raises:
        ShapeMismatch, ModelFailed, Stopped
    """
    if not ready.images:
        return {layer.name: _empty(layer) for layer in ready.layers}
    source, cancel = ready.prepared, ready.computation.cancel
    with ready.timer.measure("run"):
        return ready.model.run(source.tensor, ready.layers, cancel, source.others, ready.parts)


def finish(ready: Ready, values: Mapping[str, Array], done: Parts) -> Payload:
    """Reduce by what is not `done` yet, encode and, where the client takes it and it pays, compress.

    Raises:
        RequestError
    """
    what = ready.layers[0].name if len(ready.layers) == 1 else "layers"
    maps = [map_of(layer, values[layer.name], done) for layer in ready.layers]
    encoded = ready.request.answer.finish(ready, maps)
    wanted, packed = ready.request.coding, None
    if wanted and not encoded.media_type.startswith("image/"):
        with ready.timer.measure("compress"):
            packed = coding.encode(encoded.chunks, wanted)
    return Payload(
        chunks=packed or encoded.chunks,
        media_type=encoded.media_type,
        file_name=file_name(ready.model.identity.name, what, encoded.extension),
        model=ready.model.identity,
        timings=ready.timer.seconds,
        coding=wanted if packed else None,
        uncoded_bytes=sum(map(len, encoded.chunks)),
        headers=encoded.headers,
        images=ready.images,
    )


def kept_bytes(value: Source | Array) -> int:
    """Bytes of a value that is kept: a map, or what the maps of an image are computed from."""
    return int(value.nbytes) if isinstance(value, np.ndarray) else value.held_bytes


def _empty(layer: Layer) -> Array:
    if layer.batch_axis != 0 or layer.shape is None or None in layer.shape:
        raise ShapeMismatch(
            f"layer {layer.name!r} of no image has a shape that nobody knows: send one", limit=1, actual=0
        )
    shape = (0, *(side or 0 for side in layer.shape[1:]))
    return np.empty(shape, object if layer.dtype == "str" else layer.dtype)
