"""The filters of a layer: the weights of the one convolution whose channels its channels are."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.graph import Graph
from service.engine.layers.operators import KNOWN_DOMAINS, UNARY, names
from service.engine.nodes import Network, Node
from service.engine.weights import dequantised, floats, weight
from service.errors import NoFilters
from service.values import Array

# Where the weights stand among the inputs.
CONVOLUTIONS = {"Conv": 1, "ConvTranspose": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
# FusedConv adds the map at this input: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
FUSED_SUM = 3
# Each channel of the first input becomes the same channel of the first output.
KEEPING = (UNARY - names("Softmax LogSoftmax Hardmax QLinearSoftmax CumSum")) | names(
    "BatchNormalization InstanceNormalization GroupNormalization LRN ImageScaler Transpose"
)
JOINING = names("Add Sub Mul Div Pow Max Min Sum Mean")
CONVOLUTIONS_TOLD = 2
# An image is still one at another size.
PREPARING = names("Pad Resize Upsample Crop")


@dataclass(frozen=True, eq=False)
class Filters:
    """The weights of one convolution, as the network computes with them.

    `weights`, not to be written to: (out, in / groups, kh, kw), and (in, out / groups, kh, kw) where
    `transposed`, as in ONNX; floating point, dequantised to float32 where the file stores integers.
    `strides` and `dilations` are (y, x). Input channels are those of the convolution's own input;
    where it `reads_image` they are the planes of the network's image input, in the model's own colour
    order.
    """

    node: str
    weights: Array
    transposed: bool
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    reads_image: bool

    @property
    def channels(self) -> int:
        """How many channels the convolution makes."""
        return int(self.weights.shape[1] * self.groups if self.transposed else self.weights.shape[0])

    def by_channel(self) -> Array:
        """One filter for each channel made: (out, in / groups, kh, kw), also of a transposed convolution."""
        if not self.transposed:
            return self.weights
        grouped = self.weights.reshape(self.groups, -1, *self.weights.shape[1:])
        return grouped.swapaxes(1, 2).reshape(self.channels, -1, *self.weights.shape[2:])


def find_filters(graph: Graph, network: Network, layer: str) -> Filters:
    """The filters of the convolution that made a layer, behind bias, normalisation and activation.

    Raises:
        NoFilters: no single convolution made it, or its weights are not stored in the file.
    """
    node = find_convolution(network, layer)
    weights = _weights(graph, node)
    if weights is None:
        raise NoFilters(
            f"{node.op} {node.name!r} made layer {layer!r}, but the file does not store its weights: "
            "they are computed, or hold integers without a scale"
        )
    return Filters(
        node=node.name,
        weights=weights,
        transposed=node.op == "ConvTranspose",
        groups=int(node.attributes.get("group", 1)),
        strides=_per_axis(node, "strides", weights),
        dilations=_per_axis(node, "dilations", weights),
        reads_image=_Channels(network).come_from_image(node.inputs[0]),
    )


def find_convolution(network: Network, layer: str) -> Node:
    """The node whose channels are the layer's, each behind steps that keep it apart from the others.

    Branches that part and meet again, as in `x * sigmoid(x)`, come from one convolution.

    Raises:
        NoFilters: with the operator that stands in the way.
    """
    channels = _Channels(network)
    found: dict[str, Node] = {}
    waiting, seen = [layer], {layer}
    while waiting:
        name = waiting.pop()
        node = channels.maker(name)
        if node is None:
            raise NoFilters(f"no convolution made layer {layer!r}: it comes straight from {name!r}")
        if _is_convolution(node):
            found[node.outputs[0]] = node
            continue
        earlier = channels.behind(node, name)
        if not earlier:
            raise NoFilters(
                f"no single convolution made layer {layer!r}: {node.op} makes {name!r}, and only bias, "
                "normalisation and activation may follow the convolution"
            )
        waiting.extend(n for n in earlier if n not in seen)
        seen.update(earlier)
    if len(found) > 1:
        listed = sorted(node.name for node in found.values())
        told = " and ".join(repr(name) for name in listed[:CONVOLUTIONS_TOLD])
        raise NoFilters(f"layer {layer!r} joins what {len(listed)} convolutions made, such as {told}")
    return next(iter(found.values()))


class _Channels:
    """Follows channels backwards through a network."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._dependent = network.dependent()
        self._makers = {made: node for node in network.nodes for made in node.makes}
        self._inputs = {spec.name for spec in network.inputs}

    def maker(self, name: str) -> Node | None:
        """The node that made a tensor, None for inputs and for what depends on none."""
        return self._makers.get(name) if name in self._dependent else None

    def behind(self, node: Node, name: str, keeping: frozenset[str] = KEEPING) -> Sequence[str]:
        """The tensors whose channels a node passes on as those of `name`; none where it does not."""
        if node.domain not in KNOWN_DOMAINS or node.outputs[0] != name:
            return ()
        if node.op in keeping:
            return node.inputs[:1]
        maps = [n for n in node.inputs if n in self._dependent] if node.op in JOINING else []
        # A map that is stretched to more channels has no filter for each.
        whole = all(self._network.shape(n) == self._network.shape(name) for n in maps)
        return maps if whole else ()

    def come_from_image(self, name: str) -> bool:
        """Whether the planes of a tensor are those of an input with four axes."""
        while name not in self._inputs:
            node = self.maker(name)
            earlier = self.behind(node, name, KEEPING | PREPARING) if node else ()
            if len(earlier) != 1:
                return False
            name = earlier[0]
        return len(self._network.shape(name) or ()) == 4


def _is_convolution(node: Node) -> bool:
    adds_a_map = node.op == "FusedConv" and any(node.inputs[FUSED_SUM:])
    return node.op in CONVOLUTIONS and node.domain in KNOWN_DOMAINS and not adds_a_map


def _weights(graph: Graph, node: Node) -> Array | None:
    values = weight(graph, node.inputs[CONVOLUTIONS[node.op]])
    if values is None or node.op == "ConvInteger":
        return None
    if node.op != "QLinearConv":
        return floats(values)
    scale, zero_point = (weight(graph, name) for name in node.inputs[4:6])
    return None if scale is None else dequantised(values, scale, zero_point, axis=0)


def _per_axis(node: Node, key: str, weights: Array) -> tuple[int, ...]:
    values = node.attributes.get(key) or [1] * (weights.ndim - 2)
    return tuple(int(value) for value in values)
