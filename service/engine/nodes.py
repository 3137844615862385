"""A graph's parts in plain Python, so that everything but `graph` can be written and tested without ONNX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.values import Array, TensorSpec


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
    def makes(self) -> tuple[str, ...]:
        """Every tensor that the node makes."""
        return tuple(name for name in self.outputs if name)


@dataclass(frozen=True, eq=False)
class Network:
    """A whole graph at one input shape: nodes in topological order and what is known of each tensor.

    `tensors` holds dtype and shape of every tensor that shape inference reached, constants included;
    `constants` the values of small ones (shapes, scales, pads, axes); `inputs` are the true inputs,
    without weights.
    """

    nodes: Sequence[Node]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, TensorSpec]
    constants: Mapping[str, Array]
    producer: str = ""

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """The tensor's shape, None where even its rank is unknown."""
        spec = self.tensors.get(name)
        return spec.shape if spec else None

    def dependent(self) -> frozenset[str]:
        """The names of all tensors that depend on an input, the inputs included."""
        found = {spec.name for spec in self.inputs}
        for node in self.nodes:
            if not found.isdisjoint(node.reads):
                found.update(node.makes)
        return frozenset(found)
