"""A network's features: what its blocks give at each reduction, as timm's `features_only` has them.

At each reduction the maps from the last change of resolution on are looked at, so that of a pyramid or of
parallel branches the finished maps count. Among them the last one through which everything flows is taken,
and what already belongs to the next part is left out: the expansion of an inverted residual, the
normalization before a pre-activation block, the convolution of a classifier's head.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from service.engine.layers.geometry import Geometry
from service.engine.layers.operators import KNOWN_DOMAINS, names
from service.engine.layers.stages import ACTIVATIONS, QUANTISING, Activity
from service.engine.nodes import OF_SIZES, Network, Node

CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "QLinearConv": 3, "ConvInteger": 1}
NORMALIZATIONS = names("BatchNormalization InstanceNormalization GroupNormalization LayerNormalization")
POOLS = names("MaxPool AveragePool LpPool")
GLOBAL_POOLS = names("GlobalAveragePool GlobalMaxPool ReduceMean ReduceMax QLinearGlobalAveragePool")
LINEAR = names("Gemm MatMul Conv QLinearConv QLinearMatMul")
# A module's parts do not matter where the values stay in place.
PASSING = QUANTISING | names("Identity Dropout Cast Transpose")
IN_PLACE = PASSING | ACTIVATIONS | NORMALIZATIONS | names("Add Sum")
LONGEST_WALK = 64


def find_features(network: Network, geometry: Mapping[str, Geometry], activity: Activity) -> dict[str, int]:
    """The tensors that are features, numbered by their reductions from the finest on."""
    finder = _Finder(network, geometry, activity)
    found = (finder.feature_at(reduction) for reduction in sorted(finder.reductions))
    return {name: i for i, name in enumerate(name for name in found if name is not None)}


@dataclass(frozen=True)
class _Region:
    """The tensors of one reduction behind its last change of resolution.

    `cuts` are those through which everything flows on its way out, in graph order.
    """

    reduction: Fraction
    inner: Collection[str]
    cuts: Sequence[str]


class _Finder:
    """Finds the feature of one reduction after another."""

    def __init__(self, network: Network, geometry: Mapping[str, Geometry], activity: Activity) -> None:
        self._network = network
        self._nodes = [n for n in network.nodes if not (n.op in OF_SIZES and n.domain == "")]
        self._makers = {name: node for node in self._nodes for name in node.makes}
        self._readers: dict[str, list[Node]] = {}
        for node in self._nodes:
            for name in dict.fromkeys(node.data_inputs):
                self._readers.setdefault(name, []).append(node)
        self._activity = activity
        self._at = {name: found for name, g in geometry.items() if (found := _square(g)) is not None}
        self._convolved = self._behind_convolutions()
        self.reductions = {self._at[name] for name in self._convolved if name in self._at}

    def feature_at(self, reduction: Fraction) -> str | None:
        """The feature of one reduction, None where no convolution made a map there."""
        region = self._region(reduction)
        cuts = [name for name in region.cuts if name in self._convolved]
        if not cuts:
            return None
        chosen = self._block_output(cuts[-1], region)
        return self._before_merge(chosen, region)

    def _behind_convolutions(self) -> set[str]:
        found: set[str] = set()
        for node in self._nodes:
            if node.op in CONVOLUTIONS or not found.isdisjoint(node.data_inputs):
                found.update(node.makes)
        return found

    def _region(self, reduction: Fraction) -> _Region:
        entry = next((n for n in reversed(self._nodes) if self._enters(n, reduction)), None)
        starts = entry.makes[:1] if entry else [spec.name for spec in self._network.inputs]
        reached = self._reached(starts, reduction)
        inner = self._returning(reached, reduction)
        return _Region(reduction, inner, self._cuts(starts, inner, reduction))

    def _enters(self, node: Node, reduction: Fraction) -> bool:
        """Whether a node makes a map of this reduction from one of another."""
        if not any(self._at.get(name) == reduction for name in node.makes):
            return False
        return any(self._at.get(name, reduction) != reduction for name in node.data_inputs)

    def _reached(self, starts: Iterable[str], reduction: Fraction) -> set[str]:
        """What is computed from some tensors without a map of another reduction on the way."""
        reached = set(starts)
        for node in self._nodes:
            if not reached.isdisjoint(node.data_inputs):
                reached.update(n for n in node.makes if self._at.get(n, reduction) == reduction)
        return reached

    def _returning(self, reached: Collection[str], reduction: Fraction) -> set[str]:
        """Of these the maps, and what comes back to a map, as a squeeze-and-excitation gate does."""
        inner: set[str] = set()
        for node in reversed(self._nodes):
            for name in node.makes:
                if name in reached and (self._at.get(name) == reduction or self._is_read_in(name, inner)):
                    inner.add(name)
        return inner | {n for n in reached if n not in self._makers}

    def _is_read_in(self, name: str, inner: Collection[str]) -> bool:
        return any(made in inner for node in self._readers.get(name, ()) for made in node.makes)

    def _cuts(self, starts: Iterable[str], inner: Collection[str], reduction: Fraction) -> list[str]:
        """The maps whose number of paths through them is the number of all paths."""
        nodes = [node for node in self._nodes if any(name in inner for name in node.makes)]
        to = dict.fromkeys(starts, 1)
        for node in nodes:
            paths = sum(to.get(name, 0) for name in node.data_inputs if name in inner)
            to.update({name: paths for name in node.makes if name in inner and name not in to})
        onward = {name: self._exits(name, inner) for name in inner}
        for node in reversed(nodes):
            paths = sum(onward.get(name, 0) for name in node.makes)
            for name in node.data_inputs:
                if name in inner:
                    onward[name] += paths
        total = sum(onward.get(name, 0) for name in starts)
        ordered = [name for node in nodes for name in node.makes if self._at.get(name) == reduction]
        return [name for name in ordered if total and to.get(name, 0) * onward.get(name, 0) == total]

    def _exits(self, name: str, inner: Collection[str]) -> int:
        """In how many places a tensor leaves the region."""
        readers = self._readers.get(name, ())
        left = sum(1 for node in readers if not any(made in inner for made in node.makes))
        return left + (name in self._network.outputs)

    def _block_output(self, name: str, region: _Region) -> str:
        """The map without what belongs to the next part already."""
        leaving = self._leaving(name, region)
        while (node := self._maker(name)) is not None and node.op == "Pad" and node.inputs[0] in region.cuts:
            name = node.inputs[0]
        for step in (self._before_head, self._before_expansion, self._before_transition):
            found = step(name, region, leaving)
            if found is not None:
                name = found
                break
        for _ in range(LONGEST_WALK):
            found = self._before_norm(name, region) or self._before_activation(name, region)
            if found is None:
                return name
            name = found
        return name

    def _before_head(self, name: str, region: _Region, leaving: Sequence[Node]) -> str | None:
        """In front of a pointwise convolution that widens the map for a classifier of one linear layer."""
        ends = bool(leaving) and all(node.op in GLOBAL_POOLS for node in leaving)
        if not ends or any(self._linear_layers(node) != 1 for node in leaving):
            return None
        return self._pointwise_input(name, region, widens=True)

    def _before_expansion(self, name: str, region: _Region, leaving: Sequence[Node]) -> str | None:
        """In front of the pointwise convolution that an inverted residual begins with."""
        if not all(self._is_depthwise(node) for node in leaving):
            return None
        found = self._pointwise_input(name, region, widens=True)
        if found is None or self._is_within_block(found):
            return None
        return self._before_depthwise(found, region)

    def _is_within_block(self, name: str) -> bool:
        """Whether a map lies between the two convolutions of a depthwise separable block."""
        first = self._unactivated(name)
        node = self._makers.get(self._unnormalized(first))
        return first != name and node is not None and self._is_depthwise(node)

    def _before_depthwise(self, name: str, region: _Region) -> str:
        """Some blocks filter each channel before they widen the map."""
        node = self._makers.get(self._unnormalized(name))
        if node is None or not self._is_depthwise(node) or node.inputs[0] not in region.cuts:
            return name
        return node.inputs[0]

    def _before_transition(self, name: str, region: _Region, leaving: Sequence[Node]) -> str | None:
        """In front of the pointwise convolution between two dense blocks, which a pooling follows."""
        if not all(node.op in POOLS for node in leaving):
            return None
        found = self._pointwise_input(name, region, widens=False)
        return found if found is not None and self._before_norm(found, region) else None

    def _before_norm(self, name: str, region: _Region) -> str | None:
        """In front of a normalization that no convolution precedes, with or without an activation."""
        node = self._maker(self._unactivated(name))
        if node is None or node.op not in NORMALIZATIONS:
            return None
        first = self._passed(node.inputs[0])
        before = self._maker(first)
        is_conv = before is None or before.op in CONVOLUTIONS or before.op in ("Gemm", "MatMul")
        return None if is_conv or first not in region.cuts or first not in self._convolved else first

    def _before_activation(self, name: str, region: _Region) -> str | None:
        """In front of an activation whose merge goes on from merges that were not activated either."""
        first = self._unactivated(name)
        node = self._maker(first)
        if first == name or node is None or node.op not in ("Add", "Sum") or first not in region.cuts:
            return None
        operands = [name for name in map(self._passed, node.inputs) if name in region.cuts]
        makers = [self._maker(operand) for operand in operands]
        return first if any(n is not None and n.op in ("Add", "Sum") for n in makers) else None

    def _before_merge(self, name: str, region: _Region) -> str:
        """Where nothing is convolved behind the merge of resolutions, what was merged at this one."""
        found = name
        for _ in range(LONGEST_WALK):
            node = self._maker(found)
            if node is None or node.op not in IN_PLACE:
                break
            operands = [n for n in node.data_inputs if self._at.get(n) == region.reduction]
            own = [n for n in operands if n not in region.inner and n in self._convolved]
            own = [n for n in own if not self._is_resized(n, region.reduction)]
            if node.op in ("Add", "Sum") and len(own) == 1 and len(operands) > 1:
                return self._passed(own[0])
            found = node.inputs[0]
        return name

    def _is_resized(self, name: str, reduction: Fraction) -> bool:
        """Whether a map comes from another resolution by some layers of its own, gates included."""
        is_read_by_gate = False
        for _ in range(LONGEST_WALK):
            node = self._maker(name)
            if node is None or (len(self._readers.get(name, ())) > 1 and not is_read_by_gate):
                return False
            if self._enters(node, reduction):
                return True
            inner = self._activity.gated(node) or self._activity.argument(name)
            is_read_by_gate = inner is not None
            name = inner or node.inputs[0]
        return False

    def _leaving(self, name: str, region: _Region) -> list[Node]:
        """The nodes that read the map and make none of this reduction."""
        return [n for n in self._readers.get(name, ()) if not any(made in region.inner for made in n.makes)]

    def _pointwise_input(self, name: str, region: _Region, *, widens: bool) -> str | None:
        """What a convolution of one cell read that made a map, through normalization and activation."""
        node = self._maker(self._unnormalized(self._unactivated(name)))
        if node is None or node.op not in CONVOLUTIONS or node.attributes.get("group", 1) != 1:
            return None
        shape = self._network.shape(node.inputs[CONVOLUTIONS[node.op]])
        if shape is None or len(shape) != 4 or shape[2:] != (1, 1):
            return None
        is_wider = (shape[0] or 0) > (shape[1] or 0)
        first = self._passed(node.inputs[0])
        return first if is_wider == widens and first in region.cuts and first in self._convolved else None

    def _is_depthwise(self, node: Node) -> bool:
        return node.op in CONVOLUTIONS and int(node.attributes.get("group", 1)) > 1

    def _linear_layers(self, pool: Node) -> int:
        """How many layers with weights follow a global pooling on its way to an output."""
        name, count = pool.makes[0], 0
        for _ in range(LONGEST_WALK):
            readers = self._readers.get(name, [])
            if len(readers) != 1:
                return count if not readers else 0
            count += readers[0].op in LINEAR
            name = readers[0].makes[0]
        return count

    def _unnormalized(self, name: str) -> str:
        node = self._maker(self._passed(name))
        return node.inputs[0] if node is not None and node.op in NORMALIZATIONS else self._passed(name)

    def _unactivated(self, name: str) -> str:
        """The tensor before the activation that made a map, written out or not."""
        name = self._passed(name)
        node = self._maker(name)
        if node is None:
            return name
        if node.op in ACTIVATIONS:
            return self._passed(node.inputs[0])
        argument = self._activity.argument(name)
        return name if argument is None else self._passed(argument)

    def _passed(self, name: str) -> str:
        for _ in range(LONGEST_WALK):
            node = self._maker(name)
            if node is None or node.op not in PASSING:
                break
            name = node.inputs[0]
        return name

    def _maker(self, name: str) -> Node | None:
        node = self._makers.get(name)
        return node if node is not None and node.domain in KNOWN_DOMAINS else None


def _square(geometry: Geometry) -> Fraction | None:
    found = geometry.reduction
    return found[0] if found is not None and found[0] == found[1] else None
