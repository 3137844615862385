"""A network's stages, as timm's `out_indices` number them, and which layers hold activations.

A stage is the last layer at each reduction that every path from the image to the outputs crosses,
taken after an activation or a merge, while the reduction grows.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from service.engine.layers.geometry import Geometry
from service.engine.layers.operators import KNOWN_DOMAINS, names
from service.engine.nodes import Network, Node

ACTIVATIONS = names(
    "Relu LeakyRelu PRelu Clip Sigmoid Tanh Elu Selu Celu ThresholdedRelu HardSigmoid HardSwish Mish "
    "Softplus Softsign Gelu FastGelu QuickGelu Swish Shrink QLinearLeakyRelu QLinearSigmoid"
)
# Activations too, but a picture of probabilities is no stage.
PROBABILITIES = names("Softmax LogSoftmax QLinearSoftmax")
MERGES = names("Add Sum Concat Max Mean QLinearAdd QLinearConcat")
LAST_RESORTS = names("Conv FusedConv QLinearConv ConvTranspose BatchNormalization")
QUANTISING = names("QuantizeLinear DequantizeLinear")
# An activation's values stay that on their way through these.
PASSING = names(
    "MaxPool AveragePool LpPool GlobalMaxPool GlobalAveragePool GlobalLpPool QLinearAveragePool "
    "QLinearGlobalAveragePool ReduceMean ReduceMax Transpose Dropout Identity Reshape Flatten Squeeze "
    "Unsqueeze Slice Split Cast QuantizeLinear DequantizeLinear Concat QLinearConcat"
)
# What stands between x and f(x) where x * f(x) is written out: SiLU, hard-swish, GELU, Mish.
GATE_SHAPES = names("Sigmoid HardSigmoid Clip Relu Tanh Softplus Erf Min Max")
GATE_PARTS = GATE_SHAPES | names("Add Sub Mul Div Neg Exp Cast Identity") | QUANTISING
GATE_LENGTH = 12
# A quantised output with zero point 0 holds no negative values: exporters drop the Relu before it.
CLAMPED = names("Conv ConvTranspose Gemm MatMul Add Sum BatchNormalization")
ZERO_POINTS = {"QuantizeLinear": 2, "QLinearConv": 7, "QLinearAdd": 7}

Reduction = tuple[Fraction, Fraction]


class Activity:
    """Which tensors are an activation's output or a merge of several tensors."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._dependent = network.dependent()
        self._makers = {name: node for node in network.nodes for name in node.makes}
        self._active: dict[str, bool] = {}
        for node in network.nodes:
            if not self._dependent.isdisjoint(node.reads):
                values = node.makes if node.op == "Split" else node.makes[:1]
                self._active.update(dict.fromkeys(values, self._is_active(node)))

    def active(self, name: str) -> bool:
        """Whether the values are an activation's, directly or through pooling, reordering and the like."""
        return self._active.get(name, False)

    def ends_stage(self, name: str) -> bool:
        """Whether an activation or a merge made the tensor, quantised and back, gated or not."""
        node = self._makers.get(self._plain(name))
        if node is None or node.domain not in KNOWN_DOMAINS:
            return False
        if (gated := self.gated(node)) is not None:
            return self.ends_stage(gated)
        merges = node.op in MERGES and len(self._seen(node)) > 1
        return merges or node.op in ACTIVATIONS or self._written_out(node) or self._clamps_on_the_way(name)

    def argument(self, name: str) -> str | None:
        """What an activation that is written out was applied to (x of x * f(x)); None for anything else."""
        node = self._makers.get(name)
        if node is None or node.domain not in KNOWN_DOMAINS or not self._written_out(node):
            return None
        seen = [self._plain(name) for name in self._seen(node)]
        if len(seen) == 1:
            return self.argument(seen[0])
        return seen[1] if self._gates(seen[0], seen[1]) else seen[0]

    def _is_active(self, node: Node) -> bool:
        if node.domain not in KNOWN_DOMAINS:
            return False
        if node.op in ACTIVATIONS | PROBABILITIES or self._clamps(node) or self._written_out(node):
            return True
        if node.op in ("Concat", "QLinearConcat"):
            parts = [n for n in node.inputs if self._is_data(n)]
            return all(self.active(name) for name in parts)
        return node.op in PASSING and bool(node.inputs) and self.active(node.inputs[0])

    def _is_data(self, name: str) -> bool:
        """Neither a scale nor a zero point."""
        shape = self._network.shape(name)
        return name in self._dependent or shape is None or len(shape) > 1

    def _seen(self, node: Node) -> list[str]:
        return [name for name in node.inputs if name in self._dependent]

    def _plain(self, name: str) -> str:
        """The tensor before it was quantised and dequantised."""
        while name in self._makers and self._makers[name].op in QUANTISING:
            name = self._makers[name].inputs[0]
        return name

    def _clamps(self, node: Node) -> bool:
        """Whether the node quantises arithmetic to numbers from 0 up, or has an activation fused in."""
        if node.op == "FusedConv":
            return bool(node.attributes.get("activation"))
        place = ZERO_POINTS.get(node.op)
        if place is None or place >= len(node.inputs):
            return False
        maker = self._makers.get(node.inputs[0]) if node.op == "QuantizeLinear" else None
        if node.op == "QuantizeLinear" and (maker is None or maker.op not in CLAMPED):
            return False
        zero = self._network.constants.get(node.inputs[place])
        return zero is not None and zero.dtype.kind == "u" and not zero.any()

    def _clamps_on_the_way(self, name: str) -> bool:
        while name in self._makers and self._makers[name].op in QUANTISING:
            if self._clamps(self._makers[name]):
                return True
            name = self._makers[name].inputs[0]
        return name in self._makers and self._clamps(self._makers[name])

    def _written_out(self, node: Node) -> bool:
        """x * f(x) with a gate f, or that times a number."""
        if node.op not in ("Mul", "Div"):
            return False
        seen = [self._plain(name) for name in self._seen(node)]
        if not seen:
            return False  # Both factors are constants.
        if len(seen) == 1:
            inner = self._makers.get(seen[0])
            return self._is_number(node) and inner is not None and self._written_out(inner)
        return node.op == "Mul" and (self._gates(seen[0], seen[1]) or self._gates(seen[1], seen[0]))

    def gated(self, node: Node) -> str | None:
        """The map that a node weighs channel by channel, as squeeze and excitation does."""
        seen = [self._plain(name) for name in self._seen(node)]
        if node.op != "Mul" or len(seen) != 2:
            return None
        single = [self._is_single(self._before_expand(name)) for name in seen]
        return seen[single.index(False)] if single.count(True) == 1 else None

    def _before_expand(self, name: str) -> str:
        node = self._makers.get(name)
        return node.inputs[0] if node is not None and node.op == "Expand" else name

    def _is_single(self, name: str) -> bool:
        """Whether a map has one cell."""
        shape = self._network.shape(name)
        return shape is not None and len(shape) == 4 and (shape[2:] == (1, 1) or shape[1:3] == (1, 1))

    def _is_number(self, node: Node) -> bool:
        constants = [self._network.constants.get(n) for n in node.inputs if n not in self._dependent]
        return all(value is not None and value.size == 1 for value in constants)

    def _gates(self, gate: str, value: str) -> bool:
        """Whether `gate` is a function of `value` at the same place, and not a linear one."""
        bent = False
        for _ in range(GATE_LENGTH):
            node = self._makers.get(gate)
            if gate == value or node is None or node.op not in GATE_PARTS:
                break
            seen = {self._plain(name) for name in self._seen(node)}
            if len(seen) != 1:
                break
            bent = bent or node.op in GATE_SHAPES
            gate = seen.pop()
        return bent and gate == value


def find_stages(network: Network, geometry: Mapping[str, Geometry], activity: Activity) -> dict[str, int]:
    """The layers that are stages and their numbers; the declared outputs where there is none.

    Where reductions are lost half-way, later stages cannot be told, so that there is none at all.
    """
    if lost_at(network, geometry) is not None:
        return {}
    cuts = [(n, g.reduction) for n in find_cuts(network, geometry) if (g := geometry.get(n))]
    placed = [(name, reduction) for name, reduction in cuts if reduction is not None]
    chosen = _last_of_each(placed, {n for n, _ in placed if activity.ends_stage(n)})
    if not chosen and not any(activity.ends_stage(n) for node in network.nodes for n in node.makes):
        makers = {name: node for node in network.nodes for name in node.makes}
        chosen = _last_of_each(placed, {n for n, _ in placed if makers[n].op in LAST_RESORTS})
    return {name: i for i, name in enumerate(chosen or _outputs(network))}


def lost_at(network: Network, geometry: Mapping[str, Geometry]) -> str | None:
    """The first map through which everything flows and whose reduction should be known and is not."""
    for name in find_cuts(network, geometry):
        shape, found = network.shape(name), geometry.get(name)
        is_map = shape is not None and len(shape) == 4 and min(size or 0 for size in shape[1:]) > 1
        is_unknown = found is not None and found.reduction is None
        if is_map and is_unknown and found is not None and found.receptive_field.status == "unknown":
            return name
    return None


def find_cuts(network: Network, geometry: Mapping[str, Geometry]) -> list[str]:
    """The made tensors that all paths from the image to the outputs cross, in graph order.

    They are those whose number of paths through them is the number of all paths.
    """
    nodes = [node for node in network.nodes if node.op not in ("Shape", "Size")]
    pictures = [spec.name for spec in network.inputs if spec.name in geometry]
    to = dict.fromkeys(pictures or [spec.name for spec in network.inputs], 1)
    for node in nodes:
        paths = sum(to.get(name, 0) for name in node.reads)
        to.update(dict.fromkeys(node.makes, paths))
    onward = dict.fromkeys(network.outputs, 1)
    for node in reversed(nodes):
        paths = sum(onward.get(name, 0) for name in node.makes)
        for name in node.reads if paths else ():
            onward[name] = onward.get(name, 0) + paths
    total = sum(to.get(name, 0) for name in network.outputs)
    makes = (name for node in nodes for name in node.makes)
    return [n for n in makes if total and to.get(n, 0) * onward.get(n, 0) == total]


def _last_of_each(placed: Sequence[tuple[str, Reduction]], wanted: Iterable[str]) -> list[str]:
    """The last wanted tensor at each reduction, until the reduction falls along an axis."""
    chosen: dict[Reduction, str] = {}
    reached: Reduction = (Fraction(0), Fraction(0))
    for name, reduction in placed:
        if reduction[0] < reached[0] or reduction[1] < reached[1]:
            break
        square = reduction[0] == reduction[1]
        grown = reduction[0] > reached[0] and reduction[1] > reached[1]
        reached = reduction
        if name in wanted and (square or grown or reduction in chosen):
            chosen[reduction] = name
    return list(chosen.values())


def _outputs(network: Network) -> list[str]:
    return [name for node in network.nodes for name in node.makes if name in network.outputs]
