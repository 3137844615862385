"""One node at work, as the rules for axes see it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.layers.parts import Axes, Shape
from service.engine.nodes import Network, Node


@dataclass(frozen=True)
class Step:
    """One node at work: the axes of its inputs that have some, and shapes to judge by.

    `values` are those of shape tensors, with BATCH for the batch's size.
    """

    node: Node
    axes: Mapping[str, Axes]
    network: Network
    values: Mapping[str, Sequence[Any]]

    def of(self, index: int) -> Axes | None:
        """The axes of one input, None where nothing is known."""
        inputs = self.node.inputs
        return self.axes.get(inputs[index]) if index < len(inputs) else None

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor."""
        return self.network.shape(name)

    @property
    def made(self) -> Shape | None:
        """The shape of the first output."""
        return self.shape(self.node.outputs[0])

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """A list that older operator sets keep in an attribute and newer ones in a constant input."""
        return integers(self.network, self.node, index, attribute)


Rule = Callable[[Step], Axes | None]


def integers(network: Network, node: Node, index: int, attribute: str) -> list[int] | None:
    """A list of integers from an attribute, else from an input that is constant at these shapes."""
    if attribute in node.attributes:
        return [int(i) for i in node.attributes[attribute]]
    value = network.value(node.inputs[index]) if index < len(node.inputs) else None
    return None if value is None else [int(i) for i in value.reshape(-1)]
