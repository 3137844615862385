"""A network as a chain of segments, each compiled by itself, and which of them some layers need.

A segment ends where few tensors cross and where no fusion is broken: after activations and merges. A
layer inside a segment gets a variant of that segment alone, which is small and quick to build, and
everything before is shared with all other layers. Measured on ResNet-50 (CPU time of a deep layer
against one session): 2 segments 1.01, 4 segments 1.03, 8 segments 1.05, 16 segments 1.06 to 1.08.
"""

import math
from bisect import bisect_left
from collections.abc import Container, Iterable, Sequence

import numpy as np

from service.dtypes import NOT_HANDED_OUT
from service.engine.layers.stages import ACTIVATIONS, QUANTISING, Activity
from service.engine.nodes import OF_SIZES, Network
from service.values import Plan, Step, TensorSpec

MOST_SEGMENTS = 16
# Skip connections that lie across a cut are handed over by Python, each with its reordering.
MOST_CROSSING = 4
# Shapes and indices travel with the maps; they cost nothing.
SMALL_ELEMENTS = 64
# Operators that the runtime fuses with what comes before.
FUSED_WITH_BEFORE = ACTIVATIONS | QUANTISING


class Segments:
    """Makes plans; `ends` holds the index of the last node of each segment, the network's last included."""

    def __init__(self, network: Network, ends: Sequence[int]) -> None:
        self._nodes = network.nodes
        self._dependent = network.dependent()
        self._inputs = {spec.name for spec in network.inputs}
        self._makers = {name: i for i, node in enumerate(network.nodes) for name in node.makes}
        self.shape_values = network.shape_values()
        # They come out of a session widened, so that no other can read them.
        self._narrow = {name for name in self._makers if _is_narrow(network.tensors.get(name))}
        self._ends = tuple(ends)
        self.whole = frozenset(self._whole_steps(network))

    def __len__(self) -> int:
        return len(self._ends)

    def plan(self, layers: Iterable[str], known: Container[str] = ()) -> Plan:
        """The steps that compute these layers from the input and from what is known already."""
        wanted: dict[int, set[str]] = {}
        self._want(layers, wanted, known)
        steps = []
        for segment in range(len(self._ends) - 1, -1, -1):
            if makes := wanted.get(segment):
                steps.append(self._step(makes, self._first(segment), known))
                self._want(steps[-1].reads, wanted, known)
        return Plan(tuple(reversed(steps)))

    def fused(self, layers: Iterable[str]) -> Step:
        """The one step from the input to these layers."""
        return self._step(layers, 0, ())

    def in_order(self, steps: Iterable[Step]) -> list[Step]:
        """Steps of several plans, segment after segment."""
        return sorted(steps, key=lambda step: (self._segment(step.makes[0]), step.makes))

    def _want(self, names: Iterable[str], wanted: dict[int, set[str]], known: Container[str]) -> None:
        for name in names:
            if name not in self._inputs and name not in known:
                wanted.setdefault(self._segment(name), set()).add(name)

    def _step(self, makes: Iterable[str], first: int, known: Container[str]) -> Step:
        """What the nodes from `first` on read of the network's tensors to make these."""
        makes, reads, seen = set(makes), set(), set()
        waiting = [self._makers[name] for name in makes if name in self._makers]
        while waiting:
            if (index := waiting.pop()) in seen:
                continue
            seen.add(index)
            for name in self._nodes[index].reads:
                if self._is_given(name, first, known):
                    reads.add(name)
                elif name in self._makers:
                    waiting.append(self._makers[name])
        # What a node makes beside what is wanted of it (Split) is there, known or not.
        reads = {name for name in reads if self._makers.get(name) not in seen}
        return Step(self._ordered(reads), self._ordered(makes))

    def _is_given(self, name: str, first: int, known: Container[str]) -> bool:
        """Constants and what is computed from shapes are part of each segment that reads them.

        A list of sizes that came from another segment would have an unknown length there, with which the
        runtime refuses Resize; only what Shape itself makes is handed over, whose length is known.
        """
        if name not in self._dependent or name in self._narrow:
            return False
        if name in self.shape_values and not self._measures(name):
            return False
        return name in self._inputs or name in known or self._makers[name] < first

    def _measures(self, name: str) -> bool:
        """Whether a tensor is the shape of another one that is not an input, which is there anyway."""
        node = self._nodes[self._makers[name]] if name in self._makers else None
        return node is not None and node.op in OF_SIZES and node.inputs[0] not in self._inputs

    def _ordered(self, names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=lambda name: (self._makers.get(name, -1), name)))

    def _segment(self, name: str) -> int:
        """Which segment makes a tensor; what the file stores stands in the first."""
        return bisect_left(self._ends, self._makers.get(name, 0))

    def _first(self, segment: int) -> int:
        return self._ends[segment - 1] + 1 if segment else 0

    def _whole_steps(self, network: Network) -> Iterable[Step]:
        """The steps that compute the declared outputs: what is kept of every loaded model."""
        return self.plan(name for name in network.outputs if name in self._makers).steps


def _is_narrow(spec: TensorSpec | None) -> bool:
    """Whether a tensor's values leave a session in a wider dtype than its own."""
    return spec is not None and spec.dtype in NOT_HANDED_OUT


def find_ends(network: Network, weight_bytes: Sequence[int]) -> list[int]:
    """Where to cut: the index of each segment's last node; `weight_bytes` holds one number a node.

    Segments are about alike in weights and nodes together, since these decide how long one takes to
    build and what a variant of it holds. A place that one tensor crosses is waited for a while.
    """
    sizes = _sizes(network, weight_bytes)
    ends, before = [], 0.0
    for index, crossing in _places(network):
        gathered = sizes[index] - before
        if gathered >= (1 if crossing == 1 else 2) / MOST_SEGMENTS:
            ends.append(index)
            before = sizes[index]
    return [*ends, len(network.nodes) - 1]


def _sizes(network: Network, weight_bytes: Sequence[int]) -> Sequence[float]:
    """The share of the whole up to and with each node, 0..1."""
    dependent = network.dependent()
    counted = np.array([not dependent.isdisjoint(node.reads) for node in network.nodes], float)
    weights = np.array(weight_bytes, float)
    both = counted / max(counted.sum(), 1) + weights / max(weights.sum(), 1)
    return list(np.cumsum(both / max(both.sum(), 1)))


def _places(network: Network) -> Iterable[tuple[int, int]]:
    """Nodes after which every tensor that is read later may be handed over, and how many those are."""
    shapes = network.shape_values()
    last_read = {name: i for i, node in enumerate(network.nodes) for name in node.reads}
    judge = _Judge(network)
    crossing = {spec.name for spec in network.inputs}
    for index, node in enumerate(network.nodes[:-1]):
        crossing |= {name for name in node.makes if judge.depends(name)}
        crossing = {name for name in crossing if last_read.get(name, -1) > index}
        maps = crossing - shapes
        if 0 < len(maps) <= MOST_CROSSING and all(judge.may_cross(name) for name in maps):
            yield index, len(maps)


class _Judge:
    """Which tensors may be handed from one segment to another."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._activity = Activity(network)
        self._dependent = network.dependent()
        self._inputs = {spec.name for spec in network.inputs}
        self._quantised = any(node.op in QUANTISING for node in network.nodes)
        readers = [node.op for node in network.nodes if node.op in FUSED_WITH_BEFORE]
        self._fused = {n for node in network.nodes if node.op in readers for n in node.inputs[:1]}

    def depends(self, name: str) -> bool:
        return name in self._dependent

    def may_cross(self, name: str) -> bool:
        """Whether it is the input, a shape, or a map that nothing is fused across."""
        if name in self._inputs:
            return True
        spec = self._network.tensors.get(name)
        if spec is None or not spec.dtype or _is_narrow(spec) or name in self._fused:
            return False
        if spec.dtype in ("int64", "int32", "bool"):
            sizes = None if spec.shape is None else [n or math.inf for n in spec.shape]
            return sizes is not None and math.prod(sizes) <= SMALL_ELEMENTS
        if self._quantised:
            return spec.dtype in ("uint8", "int8")
        return self._activity.active(name) or self._activity.ends_stage(name)
