"""Multiply-accumulates and parameters of nodes, for one image.

MACs of a convolution are H_o W_o C_out (C_in / groups) k_h k_w, as fvcore and timm count them
(https://github.com/facebookresearch/fvcore/blob/main/docs/flop_count.md); those of other operators
are not counted. Parameters are what training sets: running statistics and integer constants are not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from service.engine.layers.axis_rules import RULES
from service.engine.layers.operators import CONTRACTIONS, KNOWN_DOMAINS, names
from service.engine.layers.parts import Roles, Shape
from service.engine.nodes import Network, Node

# Which inputs hold weights; an operand of Add and Mul is one only if it has several elements.
WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv", "BatchNormalization"), (1, 2)),
    **dict.fromkeys(("InstanceNormalization", "LayerNormalization", "GroupNormalization"), (1, 2)),
    **dict.fromkeys(("ConvInteger", "PRelu"), (1,)),
    **dict.fromkeys(("Add", "Mul", "MatMul", "MatMulInteger", "FusedMatMul"), (0, 1)),
    "Gemm": (0, 1, 2),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
}
OPERANDS = ("Add", "Mul")
# Between a stored weight and the node that uses it.
PASSING = names("DequantizeLinear QuantizeLinear Reshape Transpose Unsqueeze Squeeze Flatten Identity Cast")
NO_WEIGHT_DTYPES = ("int64", "bool", "str")
# They multiply and accumulate in ways that are not counted here.
UNCOUNTED = names("RNN LSTM GRU Einsum DeformConv Attention If Loop Scan SequenceMap DFT STFT Det")


@dataclass(frozen=True)
class Cost:
    """One node's share; `macs` is None where a shape that it needs is unknown."""

    macs: int | None
    params: int
    cumulative_macs: int | None


def find_costs(network: Network, roles: Mapping[str, Roles]) -> dict[str, Cost]:
    """The cost of every tensor that depends on an input; what two layers share counts for both.

    `cumulative_macs` counts everything that the tensor needs, once. A weight that several nodes use
    is the first one's.
    """
    dependent = network.dependent()
    nodes = [node for node in network.nodes if not dependent.isdisjoint(node.reads)]
    macs = [_macs(node, network, roles) for node in nodes]
    totals = _totals(nodes, macs)
    params = _params(nodes, network, dependent)
    return {
        name: Cost(macs[i], params[i] if name == node.makes[0] else 0, totals[i])
        for i, node in enumerate(nodes)
        for name in node.makes
    }


def image_shape(shape: Shape | None, roles: Roles | None) -> Shape | None:
    """The shape for one image: a batch axis has the size 1."""
    batched = bool(roles) and roles is not None and roles[0] == "N" and bool(shape)
    return (1, *shape[1:]) if batched and shape else shape


def elements(shape: Shape | None) -> int | None:
    """How many elements a tensor has, None where that is unknown."""
    sizes = [size for size in shape or () if size is not None]
    return prod(sizes) if shape is not None and len(sizes) == len(shape) else None


def _macs(node: Node, network: Network, roles: Mapping[str, Roles]) -> int | None:
    if node.op in UNCOUNTED or node.domain not in KNOWN_DOMAINS:
        return None
    if node.op not in MACS:
        return 0 if node.domain == "" or node.op in RULES else None

    def sizes(name: str) -> Shape | None:
        return image_shape(network.shape(name), roles.get(name))

    return MACS[node.op](node, sizes)


Sizes = Callable[[str], Shape | None]


def _product(*factors: int | None) -> int | None:
    known = [factor for factor in factors if factor is not None]
    return prod(known) if len(known) == len(factors) else None


def _per_output(weight: int) -> Callable[[Node, Sizes], int | None]:
    """Each output element multiplies one filter (C_in / groups, k...)."""

    def count(node: Node, sizes: Sizes) -> int | None:
        filters = sizes(node.inputs[weight])
        return _product(elements(sizes(node.outputs[0])), elements(filters[1:]) if filters else None)

    return count


def _per_input(node: Node, sizes: Sizes) -> int | None:
    """Each input element of ConvTranspose is multiplied with one filter (C_out / groups, k...)."""
    filters = sizes(node.inputs[1])
    return _product(elements(sizes(node.inputs[0])), elements(filters[1:]) if filters else None)


def _contracted(node: Node, sizes: Sizes) -> int | None:
    """Each output element is a sum over the left operand's last axis (its first if transposed)."""
    left = sizes(node.inputs[0])
    if not left:
        return None
    depth = left[-2 if node.attributes.get("transA") and len(left) > 1 else -1]
    return _product(elements(sizes(node.outputs[0])), depth)


MACS: dict[str, Callable[[Node, Sizes], int | None]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger"), _per_output(1)),
    "QLinearConv": _per_output(3),
    "ConvTranspose": _per_input,
    **dict.fromkeys(CONTRACTIONS, _contracted),
}


def _totals(nodes: Sequence[Node], macs: Sequence[int | None]) -> list[int | None]:
    """Sums over each node's ancestors and itself, which are kept as the bits of an integer."""
    needs: dict[str, tuple[int, int, bool]] = {}
    totals: list[int | None] = []
    for i, (node, own) in enumerate(zip(nodes, macs, strict=True)):
        parts = [needs[name] for name in node.reads if name in needs]
        bits, total = _united([part[:2] for part in parts], macs)
        if own:
            bits, total = bits | 1 << i, total + own
        known = own is not None and all(part[2] for part in parts)
        needs.update(dict.fromkeys(node.makes, (bits, total, known)))
        totals.append(total if known else None)
    return totals


def _united(parts: Sequence[tuple[int, int]], macs: Sequence[int | None]) -> tuple[int, int]:
    """The union of sets of nodes and its sum: the dearest branch, and what the others add to it."""
    if not parts:
        return 0, 0
    bits, total = max(parts, key=lambda part: part[1])
    for other, _ in parts:
        new = other & ~bits
        bits |= new
        while new:
            lowest = new & -new
            total += macs[lowest.bit_length() - 1] or 0
            new ^= lowest
    return bits, total


def _params(nodes: Sequence[Node], network: Network, dependent: frozenset[str]) -> list[int]:
    makers = {name: node for node in network.nodes for name in node.makes}
    counted: set[str] = set()
    counts = []
    for node in nodes:
        places = WEIGHTS.get(node.op, ()) if node.domain in KNOWN_DOMAINS else ()
        used = [node.inputs[i] for i in places if i < len(node.inputs) and node.inputs[i]]
        stored = {_stored(name, makers): name for name in used if name not in dependent}
        sizes = {s: _weight_elements(s, n, node.op, network) for s, n in stored.items() if s not in counted}
        counted.update(sizes)
        counts.append(sum(sizes.values()))
    return counts


def _stored(name: str, makers: Mapping[str, Node]) -> str:
    """The tensor that the file stores, before it is dequantised or reshaped."""
    while name in makers and makers[name].op in PASSING:
        name = makers[name].inputs[0]
    return name


def _weight_elements(stored: str, used: str, op: str, network: Network) -> int:
    spec = network.tensors.get(stored) or network.tensors.get(used)
    if spec is None or spec.dtype in NO_WEIGHT_DTYPES:
        return 0
    count = elements(spec.shape) or 0
    return 0 if op in OPERANDS and count == 1 else count
