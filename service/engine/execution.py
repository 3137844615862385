"""Running one model: which sessions answer, step after step, for one image or a batch of them."""

import threading
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial

import numpy as np
from cachetools import LRUCache
from cachetools.keys import hashkey

from service.dtypes import NOT_HANDED_OUT, WIDENED
from service.engine.decisions import decided_together
from service.engine.device import Device
from service.engine.graph import Graph
from service.engine.nodes import Network
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime, Session, Stop, Value
from service.engine.segments import Segments, find_ends
from service.errors import ModelFailed
from service.values import Array, Plan, Step, TensorSpec

SEPARABLE_KEPT, CHOICES_KEPT = 1024, 1024
Values = Mapping[str, Value]
# Two images' inputs alone, and both as one batch.
Examples = tuple[Sequence[Values], Values]


@dataclass(frozen=True)
class _Choice:
    """The two ways to compute some layers; `fused` is None where one segment does it.

    `bytes` are those of the weights that the fused session would hold: counting them takes milliseconds.
    """

    plan: Plan
    fused: Step | None
    bytes: int


@dataclass(frozen=True)
class _Check:
    """Whether a step may run on batches; `asked` is answered with, whatever it looks like."""

    step: Step
    asked: frozenset[str]


class Execution:
    """Computes tensors of one graph; the methods may be called from several threads at once."""

    def __init__(
        self, graph: Graph, network: Network, runtime: Runtime, plans: PlanCache, owner: Hashable
    ) -> None:
        self._graph = graph
        self._network = network
        self._tensors = network.tensors
        self._runtime = runtime
        self.device = Device(runtime)
        self._plans = plans
        self._owner = owner
        self._fixed_batch = {s.name for s in graph.inputs if s.shape and s.shape[0] is not None}
        weights = [graph.weight_bytes([i]) for i in range(len(graph.nodes))]
        self._segments = Segments(network, find_ends(network, weights))
        self._choice = lru_cache(CHOICES_KEPT)(self._choose)
        self._reads = lru_cache(CHOICES_KEPT)(self._read_inputs)
        self._separable: LRUCache[Hashable, bool] = LRUCache(SEPARABLE_KEPT)
        self._lock = threading.Lock()

    def plan(self, layers: Sequence[str], known: Container[str] = ()) -> Plan:
        """The steps that compute these layers from the inputs and from what is known already."""
        return self._segments.plan(layers, known)

    def run(
        self,
        values: Values,
        layers: tuple[str, ...],
        *,
        stop: Stop | None = None,
        stay: Container[str] = (),
    ) -> Values:
        """Compute layers of one image from the inputs; those in `stay` stay on the device.

        Raises:
            ModelFailed: the runtime could not.
            Stopped: `stop` was set meanwhile.
        """
        choice = self._choice(layers)
        if (session := self._fused(choice, values)) is not None:
            return session.run({name: values[name] for name in session.inputs}, stop, stay=stay)
        steps, found = choice.plan.steps, dict(values)
        for index, step in enumerate(steps):
            remain = {name for name in step.makes if name in stay or name not in layers}
            found |= self.run_step(step, found, stop=stop, stay=remain)
            later = set(layers).union(*(step.reads for step in steps[index + 1 :]))
            found = {name: value for name, value in found.items() if name in later}
        return found

    def run_step(
        self,
        step: Step,
        values: Values,
        *,
        batch: int = 1,
        stop: Stop | None = None,
        stay: Container[str] = (),
    ) -> Values:
        """Compute what one step makes from what it reads; what is in `stay` stays on the device.

        Raises:
            ModelFailed, Stopped
        """
        reads = {name: values[name] for name in step.reads}
        return self._session(step, self._frees(step, batch > 1), reads).run(reads, stop, stay=stay)

    def in_order(self, steps: Iterable[Step]) -> list[Step]:
        """Steps of several plans, each after those that it reads from."""
        return self._segments.in_order(steps)

    def hands_over_maps(self, step: Step) -> bool:
        """Whether all that a step reads and makes has an image a row: no shapes or indices among it."""
        specs = [self._tensors.get(name) for name in (*step.reads, *step.makes)]
        return all(s is not None and s.shape is not None and len(s.shape) > 1 for s in specs)

    def reads_of(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        """The inputs of the graph that some layers need."""
        return self._reads(layers)

    def compile(self, layers: tuple[str, ...]) -> None:
        """Compile the segments that some layers need, without running them.

        Raises:
            ModelFailed: an operator is unknown or the graph is not valid.
        """
        for step in self._choice(layers).plan.steps:
            self._session(step, free=False, reads={})

    def fuse(self, layers: tuple[str, ...], feeds: Values) -> None:
        """Compile the session from the input to these layers now, and run it once.

        Raises:
            ModelFailed
        """
        step = self._choice(layers).fused
        if step is not None:
            build = partial(self._compile, step, free=False)
            session = self._plans.get(self._key(step, False, feeds), build, "fused")
            session.run({name: feeds[name] for name in session.inputs})

    def release(self) -> None:
        """Drop what is compiled of this model."""
        self._plans.drop(self._owner)

    def is_separable(
        self,
        layers: tuple[str, ...],
        image_shape: tuple[int, ...],
        examples: Callable[[], Examples],
        stop: Stop | None = None,
    ) -> bool:
        """Whether a batch gives bit for bit what its images give alone, without optimisation.

        Found out on two examples, alone and as one batch, once a step and image shape: a reshape with
        a constant batch of 1 fails or mixes images. Where images may decide for each other, examples
        tell nothing.

        Raises:
            Stopped: `stop` was set meanwhile.
        """
        if not self.decided_together.isdisjoint(layers):
            return False
        checks = [_Check(s, frozenset(layers).intersection(s.makes)) for s in self._choice(layers).plan.steps]
        with self._lock:
            known = [self._separable.get((check, image_shape)) for check in checks]
        if None not in known or False in known:
            return all(known)
        alone, pair = examples()
        for check in checks:
            try:
                made, together = self._tried(check.step, alone, pair, stop)
                passes = _batch_equals_singles(check, made, together)
            except ModelFailed:
                passes = False
            with self._lock:
                self._separable[check, image_shape] = passes
            if not passes:
                return False
            alone = [{**values, **more} for values, more in zip(alone, made, strict=True)]
            pair = {**pair, **together}
        return True

    @cached_property
    def decided_together(self) -> frozenset[str]:
        """The tensors that depend on a decision which one image of a batch would take for all."""
        return decided_together(self._network, self._graph.branching)

    def run_exact(self, values: Values, layers: tuple[str, ...]) -> Values:
        """Compute layers in one session without optimisation, which is not kept.

        Raises:
            ModelFailed: the runtime could not.
        """
        session = self._exact(self._segments.fused(layers), free=False)
        return session.run({name: values[name] for name in session.inputs})

    def _tried(
        self, step: Step, alone: Sequence[Values], pair: Values, stop: Stop | None
    ) -> tuple[Sequence[Values], Values]:
        """What a step makes of two images alone, and of both as one batch, without optimisation.

        Raises:
            ModelFailed, Stopped
        """
        reads = {name: _joined([v[name] for v in alone], pair[name]) for name in step.reads}
        single, batch = self._exact(step, free=False), self._exact(step, free=True)
        made = [single.run({name: values[name] for name in step.reads}, stop) for values in alone]
        return made, batch.run(reads, stop)

    def _choose(self, layers: tuple[str, ...]) -> _Choice:
        plan, fused = self._segments.plan(layers), self._segments.fused(layers)
        if plan.steps == (fused,):
            return _Choice(plan, None, 0)
        return _Choice(plan, fused, self._bytes_of(fused))

    def _read_inputs(self, layers: tuple[str, ...]) -> tuple[str, ...]:
        nodes = (self._graph.nodes[i] for i in self._graph.needed(layers))
        reads = {name for node in nodes for name in node.reads} | set(layers)
        return tuple(spec.name for spec in self._graph.inputs if spec.name in reads)

    def _fused(self, choice: _Choice, values: Values) -> Session | None:
        """The session from the input to some layers, where it exists or is worth building."""
        if (step := choice.fused) is None:
            return None
        build = partial(self._compile, step, free=False)
        return self._plans.fused(self._key(step, False, values), build, choice.bytes)

    def _session(self, step: Step, free: bool, reads: Values) -> Session:
        return self._plans.get(
            self._key(step, free, reads),
            lambda: self._compile(step, free),
            "segment" if step in self._segments.whole else "variant",
        )

    def _key(self, step: Step, free: bool, values: Values) -> Hashable:
        """What a session is kept by: on a device each shape has its own.

        There a session that is given another shape plans all its convolutions anew: ResNet-50 takes 80 ms
        each time, with batches of changing sizes thirty times what a run takes.
        """
        shapes = self.device.shapes({name: values[name] for name in step.reads if name in values})
        return hashkey(self._owner, step, free, shapes)

    def _frees(self, step: Step, batch: bool) -> bool:
        return batch and not self._fixed_batch.isdisjoint(step.reads)

    def _compile(self, step: Step, free: bool) -> Session:
        model = self._graph.cut(step.makes, self._given(step), free_batch=free, widen=self._widened(step))
        weights = self._bytes_of(step)
        return self._runtime.compile(model, self._graph.folder, weight_bytes=weights)

    def _bytes_of(self, step: Step) -> int:
        """Bytes of the weights that a step holds."""
        return self._graph.weight_bytes(self._graph.needed(step.makes, step.reads))

    def _exact(self, step: Step, *, free: bool) -> Session:
        model = self._graph.cut(step.makes, self._given(step), free_batch=free, widen=self._widened(step))
        return self._runtime.compile_exact(model, self._graph.folder)

    def _widened(self, step: Step) -> Mapping[str, str]:
        """What a step makes in dtypes that the runtime does not hand out, and the dtypes for these."""
        dtypes = {name: self._tensors[name].dtype for name in step.makes if name in self._tensors}
        return {name: WIDENED[dtype] for name, dtype in dtypes.items() if dtype in NOT_HANDED_OUT}

    def _given(self, step: Step) -> list[TensorSpec]:
        """What a step reads; maps have free sides, since the batch and the image's size may change."""
        specs = [self._tensors[name] for name in step.reads if name in self._tensors]
        return [spec if spec.name in self._segments.shape_values else _free(spec) for spec in specs]


def _free(spec: TensorSpec) -> TensorSpec:
    return spec if spec.shape is None else replace(spec, shape=(None,) * len(spec.shape))


def _batch_equals_singles(check: _Check, alone: Sequence[Values], together: Values) -> bool:
    if not all(_is_map(together[name]) for name in check.asked):
        return False  # One index an image can be equal by chance.
    return all(
        _same(together[name], np.concatenate([made[name] for made in alone]))
        for name in check.step.makes
        if _is_map(together[name])
    )


def _joined(alone: Sequence[Array], together: Array) -> Array:
    """Exactly the two images' maps; what is no map is what the batch gave."""
    return np.concatenate(alone) if _is_map(together) else together


def _same(together: Array, alone: Array) -> bool:
    """numpy looks for NaN in numbers only."""
    return np.array_equal(together, alone, equal_nan=together.dtype.kind == "f")


def _is_map(value: Array) -> bool:
    """Not a number, a shape or an index, which travel beside the maps."""
    return value.ndim > 1 or (value.ndim == 1 and value.dtype.kind == "f")
