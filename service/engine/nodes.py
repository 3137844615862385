"""A graph's parts in plain Python, so that everything but `graph` can be written and tested without ONNX."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from service.values import Array, TensorSpec

# Numbers that say how a node works: pads of all axes, a shape.
MOST_PARAMETERS = 64
# Behind the name of an output that was cast to a dtype which numpy has.
WIDENED_SUFFIX = ":featuremaps-widened"
# Their outputs depend on a tensor's shape and not on its values.
OF_SIZES = ("Shape", "Size")


@dataclass(frozen=True)
class Origin:
    """What PyTorch's dynamo exporter recorded of the operation that a node came from.

    `scopes` are the paths of the modules that were being called, outermost first, and `kind` the class of
    the innermost; `value` names the traced value, which `users` others read, and `reads` those that it read,
    in order; `rules` are the rewrites that the exporter applied since.
    """

    scopes: tuple[str, ...]
    value: str
    reads: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    kind: str = ""
    users: int | None = None


@dataclass(frozen=True)
class Node:
    """One operation. `captured` are outer tensors that its subgraphs (If, Loop) read.

    Attributes are Python values: int, float, str, lists of them, numpy arrays; subgraphs are left out.
    An optional input or output that is not there has the name "".
    """

    name: str
    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    captured: tuple[str, ...] = ()
    origin: Origin | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node needs."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)

    @property
    def data_inputs(self) -> tuple[str, ...]:
        """What its outputs are made of: CastLike reads a second tensor for its type only."""
        return self.inputs[:1] if self.op == "CastLike" else self.reads

    @property
    def makes(self) -> tuple[str, ...]:
        """Every tensor that the node makes."""
        return tuple(name for name in self.outputs if name)


@dataclass(frozen=True, eq=False)
class Network:
    """A whole graph at one input shape: nodes in topological order and what is known of each tensor.

    `tensors` holds dtype and shape of every tensor that shape inference reached, constants included;
    `constants` the values of small ones (shapes, scales, pads, axes) that the file stores, `folded` those and
    the ones that constants and the inputs' shapes decide; `inputs` are the true inputs, without weights.
    The shapes of `variable` tensors depend on the inputs' values.
    """

    nodes: Sequence[Node]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, TensorSpec]
    constants: Mapping[str, Array]
    folded: Mapping[str, Array] = field(default_factory=dict)
    variable: frozenset[str] = frozenset()
    producer: str = ""

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The tensor's shape, None where even its rank is unknown."""
        spec = self.tensors.get(name)
        return spec.shape if spec else None

    def value(self, name: str) -> Array | None:
        """A small tensor's value where it is constant at these shapes."""
        found = self.folded.get(name)
        return self.constants.get(name) if found is None else found

    def shape_values(self) -> frozenset[str]:
        """The small tensors that the inputs' shapes decide alone: sizes, scales, pads, slices' ends."""
        dependent, found = self.dependent(), set[str]()
        for node in self.nodes:
            reads = [name for name in node.reads if name in dependent]
            measures = node.op in OF_SIZES and node.domain == ""
            if reads and (measures or all(name in found for name in reads)):
                found.update(name for name in node.makes if self.is_small(name))
        return frozenset(found)

    def is_small(self, name: str) -> bool:
        """Whether a tensor holds no more numbers than the parameters of a node do."""
        shape = self.shape(name)
        return shape is not None and math.prod(size or 1 for size in shape) <= MOST_PARAMETERS

    def dependent(self) -> frozenset[str]:
        """The names of all tensors that depend on an input, the inputs included."""
        return self._dependent

    @cached_property
    def _dependent(self) -> frozenset[str]:
        found = {spec.name for spec in self.inputs}
        for node in self.nodes:
            if not found.isdisjoint(node.reads):
                found.update(node.makes)
        return frozenset(found)
