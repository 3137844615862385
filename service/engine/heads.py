"""A classifier's head, read out of the graph: how much each channel of the pooled map counts for a class.

Where a network ends in global average pooling and one linear layer, class activation maps need no
gradients: `logit_k = bias_k + mean over places of sum_c weights_kc * map_c`, so that `sum_c weights_kc *
map_c` says what each place adds to the class (Zhou et al. 2016, https://arxiv.org/abs/1512.04150).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from service.engine.filters import CONVOLUTIONS, find_convolution
from service.engine.graph import Graph
from service.engine.layers.axes import find_roles
from service.engine.layers.axis_rules import reduced_axes
from service.engine.layers.costs import elements
from service.engine.layers.operators import KNOWN_DOMAINS, names
from service.engine.nodes import Network, Node
from service.engine.weights import weight
from service.errors import InvalidParameter, NoFilters, NotDrawable
from service.values import Array

# A vector's numbers stay in their order; a quantised network rounds them on the way.
VECTOR_STEPS = names(
    "Flatten Reshape Squeeze Unsqueeze Transpose Dropout Identity Cast QuantizeLinear DequantizeLinear"
)
# What may follow the logits.
SQUASHING = names("Softmax LogSoftmax Sigmoid")
WIDENING = {("float16", "float32"), ("bfloat16", "float32"), ("float32", "float64")}
SPACE: frozenset[str | None] = frozenset("HW")
CHANNELS_AND_SPACE: frozenset[str | None] = frozenset("CHW")
REASONS_TOLD = 4
UNKNOWN = -1


@dataclass(frozen=True, eq=False)
class Head:
    """One linear layer on the average of a map.

    A fully convolutional network has no such layer behind the pooling: channel k is the map of class k,
    `weights` the identity, `bias` 0.

    Attributes:
        layers: names of the map that is pooled, and of the layers that hold the same values, other
            axis orders included (their `channel_axis` says where the channels lie).
        weights: (classes, channels) float32.
        bias: (classes,) float32.
        logits: name of the layer that holds the logits, before any softmax.
    """

    layers: tuple[str, ...]
    weights: Array
    bias: Array
    logits: str


@dataclass(frozen=True, eq=False)
class _Linear:
    """`out = weights @ data + bias`: weights (classes, channels), bias of one element or one a class."""

    data: str
    weights: Array
    bias: Array


def find_head(graph: Graph, network: Network, layer: str | None = None) -> Head:
    """The head that a layer feeds, of the whole graph described for one image.

    Of several, the one that pools the layer itself, else that of the first declared output.

    Raises:
        NotDrawable: with the reason why none of the declared outputs has such a head.
    """
    reader = _Reader(graph, network)
    outputs = _fed(network, layer) or network.outputs
    heads, reasons = [], []
    for output in outputs:
        try:
            heads.append(reader.head(output))
        except NotDrawable as error:
            reasons.append(f"{output!r} {error.detail}")
    if not heads:
        raise NotDrawable(
            "class activation maps need an output that is one linear layer on the average over a whole "
            f"map; {'; '.join(reasons[:REASONS_TOLD])}"
        )
    return next((head for head in heads if layer in head.layers), heads[0])


def class_weights(head: Head, layer: str, target: int) -> Array:
    """How much each channel of a layer counts for a class: (channels,) float32, a view.

    Raises:
        NotDrawable: the layer is not the one that is pooled.
        InvalidParameter: there is no such class.
    """
    if layer not in head.layers:
        raise NotDrawable(
            f"class activation maps are of the layer that is pooled, {head.layers[0]!r}, not of {layer!r}",
            suggestions=list(head.layers),
        )
    last = len(head.weights) - 1
    if not 0 <= target <= last:
        raise InvalidParameter(
            f"target={target} is no class of this model: give 0 to {last}",
            parameter="target",
            limit=last,
            actual=target,
        )
    row: Array = head.weights[target]
    return row


def _fed(network: Network, layer: str | None) -> tuple[str, ...]:
    """The declared outputs that depend on a layer, all without one."""
    reached = {layer}
    for node in network.nodes:
        if not reached.isdisjoint(node.reads):
            reached.update(node.makes)
    return tuple(name for name in network.outputs if layer is None or name in reached)


class _Reader:
    """Walks back from an output: squashing, linear layer, vector, average, map."""

    def __init__(self, graph: Graph, network: Network) -> None:
        self._graph = graph
        self._network = network
        self._dependent = network.dependent()
        self._makers = {made: node for node in network.nodes for made in node.makes}
        self._roles = find_roles(network)
        self._linear_layers = {"Gemm": self._gemm, "MatMul": self._matmul, "Conv": self._conv}

    def head(self, output: str) -> Head:
        """The head that ends in a declared output; NotDrawable where there is none."""
        logits = self._before(output, VECTOR_STEPS | SQUASHING)
        if (pooled := self._averaged(logits)) is not None:
            return self._convolutional(logits, pooled)
        linear = self._linear(logits)
        vector = self._before(linear.data, VECTOR_STEPS)
        pooled = self._averaged(vector)
        if pooled is None:
            raise NotDrawable(
                f"is a linear layer on {vector!r}, which {self._what_made(vector)}: that is not the average "
                "over the whole of a map"
            )
        classes, channels = linear.weights.shape
        if (classes, channels) != (self._size(logits), self._channels(pooled)):
            raise NotDrawable(f"is a linear layer without one weight for each channel of {pooled!r}")
        weights = np.asarray(linear.weights, np.float32)
        bias = np.broadcast_to(linear.bias.astype(np.float32), (classes,))
        return Head(self._equals(pooled), weights, bias, logits)

    def _convolutional(self, logits: str, pooled: str) -> Head:
        """A vector of averages is one of logits where a 1x1 convolution, the linear layer, made the map."""
        no_classes = f"is the average of {pooled!r} itself, whose channels are features and not classes"
        try:
            node = find_convolution(self._network, pooled)
        except NoFilters as error:
            raise NotDrawable(no_classes) from error
        kernel = (self._network.shape(node.inputs[CONVOLUTIONS[node.op]]) or ())[2:]
        if elements(kernel) != 1:
            raise NotDrawable(no_classes)
        classes = self._channels(pooled)
        bias = np.zeros(classes, np.float32)
        return Head(self._equals(pooled), np.eye(classes, dtype=np.float32), bias, logits)

    def _linear(self, name: str) -> _Linear:
        """The linear layer that made a vector, biases added behind it included."""
        node = self._maker(name)
        if node is not None and node.op == "Add":
            return self._biased(node)
        rule = self._linear_layers.get(node.op) if node is not None else None
        if node is None or rule is None:
            raise NotDrawable(f"comes from {name!r}, which {self._what_made(name)}: that is no linear layer")
        return rule(node)

    def _biased(self, node: Node) -> _Linear:
        maps = [name for name in node.inputs if name in self._dependent]
        if len(maps) != 1:
            raise NotDrawable(f"comes from Add {node.name!r}, which joins two branches and is no bias")
        linear = self._linear(self._before(maps[0], VECTOR_STEPS))
        constant = next(name for name in node.inputs if name not in self._dependent)
        bias = linear.bias + self._bias(node, constant, len(linear.weights))
        return _Linear(linear.data, linear.weights, bias)

    def _gemm(self, node: Node) -> _Linear:
        """`alpha * A' B' + beta * C`: https://onnx.ai/onnx/operators/onnx__Gemm.html."""
        matrix = self._matrix(node)
        weights = node.attributes.get("alpha", 1.0) * (matrix if node.attributes.get("transB") else matrix.T)
        bias = self._bias(node, _input(node, 2), len(weights))
        return _Linear(node.inputs[0], weights, node.attributes.get("beta", 1.0) * bias)

    def _matmul(self, node: Node) -> _Linear:
        return _Linear(node.inputs[0], self._matrix(node).T, np.zeros(1, np.float32))

    def _conv(self, node: Node) -> _Linear:
        """On a map of one cell a 1x1 convolution is a linear layer."""
        values = self._stored(node, node.inputs[1])
        if elements(values.shape[2:]) != 1 or any(node.attributes.get("pads", ())):
            raise NotDrawable(
                f"comes from Conv {node.name!r}, which is no linear layer: it has a window or padding"
            )
        bias = self._bias(node, _input(node, 2), len(values))
        return _Linear(node.inputs[0], values.reshape(values.shape[:2]), bias)

    def _matrix(self, node: Node) -> Array:
        values = self._stored(node, node.inputs[1])
        if values.ndim != 2:
            raise NotDrawable(f"comes from {node.op} {node.name!r}, whose weights are no matrix")
        return values

    def _bias(self, node: Node, name: str, classes: int) -> Array:
        """(classes,) or (1,) float32, zero where there is none."""
        values = self._stored(node, name).reshape(-1) if name else np.zeros(1, np.float32)
        if values.size not in (1, classes):
            raise NotDrawable(
                f"comes from {node.op} {node.name!r}, which adds {values.size} numbers to {classes} classes"
            )
        return values

    def _stored(self, node: Node, name: str) -> Array:
        values = weight(self._graph, name)
        if values is None:
            raise NotDrawable(f"comes from {node.op} {node.name!r}, whose weights the file does not store")
        return values.astype(np.float32)

    def _averaged(self, name: str) -> str | None:
        """The map (N, C, H, W in any order) whose average over all places `name` is, None where it is not."""
        node = self._maker(name)
        pooled = self._pooled(node) if node is not None else None
        # As many averages as channels: no axis but rows and columns went, and there is one window.
        if pooled is None or not set(self._roles.get(pooled, ())) >= CHANNELS_AND_SPACE:
            return None
        return pooled if self._size(name) == self._channels(pooled) else None

    def _pooled(self, node: Node) -> str | None:
        """What a node averages over rows and columns."""
        if node.op == "ReduceMean":
            return self._mean(node)
        whole = node.op == "AveragePool" and _covers(node, self._network.shape(node.inputs[0]))
        return node.inputs[0] if whole or node.op == "GlobalAveragePool" else None

    def _mean(self, last: Node) -> str | None:
        """What one ReduceMean averages over rows and columns, or two in a row, one over each."""
        node: Node | None = last
        missing = SPACE
        while missing:
            if node is None or node.op != "ReduceMean":
                return None
            name = node.inputs[0]
            missing, node = missing - self._reduced(node), self._maker(name)
        return name

    def _reduced(self, node: Node) -> frozenset[str | None]:
        """The roles of the axes that a Reduce operator runs over, none where they are not known."""
        roles = self._roles.get(node.inputs[0], ())
        axes = reduced_axes(self._network, node, len(roles)) if roles else None
        return frozenset(roles[axis] for axis in axes or ())

    def _equals(self, name: str) -> tuple[str, ...]:
        """A map and the layers behind it that hold the same values."""
        same = [name]
        while (node := self._maker(same[-1])) is not None and self._keeps_values(node):
            same.append(node.inputs[0])
        return tuple(same)

    def _keeps_values(self, node: Node) -> bool:
        if node.op == "Cast":
            return (self._dtype(node.inputs[0]), self._dtype(node.outputs[0])) in WIDENING
        # Without the channels' place a map cannot be weighted.
        return node.op in ("Identity", "Dropout") or (
            node.op == "Transpose" and "C" in self._roles.get(node.inputs[0], ())
        )

    def _before(self, name: str, steps: Iterable[str]) -> str:
        """The first of the tensors that lead to `name` through such steps alone."""
        while (node := self._maker(name)) is not None and node.op in steps:
            name = node.inputs[0]
        return name

    def _maker(self, name: str) -> Node | None:
        """The node of which a tensor is the first output, None outside of ONNX's own operators."""
        node = self._makers.get(name)
        known = node is not None and node.domain in KNOWN_DOMAINS and node.outputs[0] == name
        return node if known else None

    def _what_made(self, name: str) -> str:
        node = self._makers.get(name)
        return f"{node.op} made" if node is not None else "no node makes"

    def _channels(self, name: str) -> int:
        """How many channels a map has whose channel axis is known."""
        shape = self._network.shape(name)
        count = shape[self._roles[name].index("C")] if shape else None
        return count if count is not None else UNKNOWN

    def _size(self, name: str) -> int | None:
        return elements(self._network.shape(name))

    def _dtype(self, name: str) -> str:
        spec = self._network.tensors.get(name)
        return spec.dtype if spec else ""


def _input(node: Node, index: int) -> str:
    """An input's name, "" where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else ""


def _covers(node: Node, shape: tuple[int | None, ...] | None) -> bool:
    """Whether the first window of an AveragePool holds the whole map and counts no padding."""
    sizes, attributes = (shape or ())[2:], node.attributes
    kernel = attributes.get("kernel_shape", ())
    rank = len(kernel)
    begins = (attributes.get("pads") or [0] * 2 * rank)[:rank]
    padded = str(attributes.get("auto_pad", "")).startswith("SAME") or any(attributes.get("pads") or ())
    counts_padding = padded and attributes.get("count_include_pad")
    if counts_padding or any(step != 1 for step in attributes.get("dilations") or ()):
        return False
    return len(sizes) == rank > 0 and all(
        size is not None and window - begin >= size
        for size, window, begin in zip(sizes, kernel, begins, strict=True)
    )
