"""The modules of a network by their dotted paths: which tensors each made, and which one it returned.

A path gives a tensor only where it is certain that the module returned it. An exporter may fold a norm into a
convolution, merge an operation at a module's end with what follows it, or leave it out.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce

from service.engine.layers.norms import computed_weights, find_folds
from service.engine.layers.scopes import Chain, Scopes, read_scopes
from service.engine.layers.seams import COPIED, DOUBTFUL, SURE, TURNED, Seams, common
from service.engine.nodes import Network, Node

KEEPS_NORMS = {
    "dynamo": "dynamo=True, optimize=False",
    "torchscript": "dynamo=False, do_constant_folding=False",
}
# Names in one message.
NAMED = 4


@dataclass(frozen=True)
class Modules:
    """`outputs` holds each module's returned tensor by path, `reasons` why a module has none.

    `chains` holds the modules around each tensor, outermost first; `aliases` other names of folded norms.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def path_of(self, tensor: str) -> str | None:
        """The path of the module that made a tensor."""
        chain = self.chains.get(tensor)
        return chain[-1] if chain else None

    def output_of(self, path: str) -> str | None:
        """The tensor that a module returned, None where that is not known."""
        return self.outputs.get(self.aliases.get(path, path))

    def reason(self, path: str) -> str:
        """Why a path that is or may be a module's has no tensor; "" for any other text."""
        if path in self.reasons:
            return self.reasons[path]
        if any(other.startswith(path + ".") for other in self._paths):
            return f"the container is not called, and returns nothing; module:{path}.* gives what is inside"
        outer = path.rpartition(".")[0]
        return "the file holds no operation of such a module" if outer in self._paths else ""

    def inside(self, pattern: re.Pattern[str]) -> frozenset[str]:
        """The tensors that were made inside of modules whose paths match."""
        chosen = {path for path in self._paths if pattern.match(path)}
        return frozenset(tensor for tensor, chain in self.chains.items() if not chosen.isdisjoint(chain))

    @cached_property
    def _paths(self) -> frozenset[str]:
        return frozenset(path for chain in self.chains.values() for path in chain).union(self.reasons)


@dataclass
class _Boundary:
    """The tensors of one call of a module that are read outside of it; `doubts` are reasons by tensor.

    Of `copied` ones an equal value was read, which may be another module's. `lost` says why what the module
    returned is in no tensor.
    """

    certain: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)
    lost: str = ""


def find_modules(network: Network) -> Modules:
    """Find every module that left an operation in the graph, and the norms that were folded."""
    # Four of five nodes in a transformer's export copy weights or compute shapes.
    traced = replace(network, nodes=_computing_values(network))
    scopes = read_scopes(traced)
    if scopes.notation == "none":
        return Modules()
    readers = _readers(traced.nodes)
    folds = find_folds(traced.nodes, scopes, readers, computed_weights(network))
    survey = _Survey(traced, scopes, readers)
    boundaries = survey.boundaries()
    calls = _calls(scopes)
    outputs: dict[str, str] = {}
    reasons: dict[str, str] = {}
    by_path: dict[str, list[Chain]] = defaultdict(list)
    for chain in boundaries:
        by_path[chain[-1]].append(chain)
    for path, chains in by_path.items():
        found = _returned([boundaries[chain] for chain in chains], [calls.get(c, 1) for c in chains], scopes)
        if isinstance(found, _Output):
            outputs[path] = found.tensor
        else:
            reasons[path] = found
    for path, norm in folds.norm_of.items():
        if path not in outputs:
            reasons[path] = folded(norm, scopes.notation)
    aliases = {alias: path for alias, path in folds.aliases.items() if alias not in by_path}
    return Modules(survey.chains, outputs, reasons, aliases)


@dataclass(frozen=True)
class _Output:
    tensor: str


def _returned(boundaries: Sequence[_Boundary], calls: Sequence[int], scopes: Scopes) -> _Output | str:
    """The tensor that a module returned, or why that is not certain."""
    certain = [tensor for b in boundaries for tensor in b.certain]
    copied = [tensor for b in boundaries for tensor in b.copied]
    doubts = {tensor: reason for b in boundaries for tensor, reason in b.doubts.items()}
    lost = [b.lost for b in boundaries if b.lost]
    if len(boundaries) > 1 or max(calls) > 1:
        return f"the module is called more than once{_ask(certain or copied)}"
    found = certain or copied
    # A read that dynamo recorded is sure, whatever became of others.
    recorded = bool(certain) and scopes.notation == "dynamo"
    if len(found) == 1 and not lost and (recorded or not doubts):
        return _Output(found[0])
    if len(found) > 1:
        return f"more than one of its tensors is used outside of it{_ask(found)}"
    if lost:
        return lost[0]
    for tensor, reason in doubts.items():
        return f"{reason}; its last tensor in the file is {tensor!r}"
    return "nothing outside of the module uses a tensor that it made"


def _ask(tensors: Sequence[str]) -> str:
    """The tensors to ask for instead."""
    more = ", ..." if len(tensors) > NAMED else ""
    return f"; ask one of {', '.join(map(repr, tensors[:NAMED]))}{more}" if tensors else ""


def folded(norm: str | None, notation: str) -> str:
    """Why a convolution has no tensor, and what to do."""
    keeps = f"export with torch.onnx.export(..., {KEEPS_NORMS[notation]})" if notation in KEEPS_NORMS else ""
    if norm is None:
        return f"folded by the exporter with a norm whose path is not in the file; {keeps}"
    return f"folded by the exporter; ask {norm}, or {keeps}"


def _readers(nodes: Sequence[Node]) -> dict[str, list[int]]:
    readers: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        for name in (*node.inputs, *node.captured):
            readers[name].append(i)
    return readers


def _calls(scopes: Scopes) -> dict[Chain, int]:
    """How often each module was called at least: as often as the least repeated of what it called."""
    least: dict[Chain, int] = {}
    for chain, count in scopes.calls.items():
        for depth in range(1, len(chain) + 1):
            least[chain[:depth]] = min(count, least.get(chain[:depth], count))
    return least


class _Survey:
    """Which tensors leave which modules."""

    def __init__(
        self,
        network: Network,
        scopes: Scopes,
        readers: Mapping[str, Sequence[int]],
    ) -> None:
        self._network = network
        self._scopes = scopes
        self._readers = readers
        self._outputs = frozenset(network.outputs)
        self._seams = Seams(network, scopes, readers)
        self.chains: dict[str, Chain] = {}

    def boundaries(self) -> dict[Chain, _Boundary]:
        """By chain, the tensors that are read outside of its last module."""
        found: dict[Chain, _Boundary] = {}
        for chain in {chain for chain in (*self._scopes.starts, *self._scopes.ends) if chain}:
            for depth in range(1, len(chain) + 1):
                found.setdefault(chain[:depth], _Boundary())
        for i, node in enumerate(self._network.nodes):
            for tensor in node.makes:
                self._place(tensor, i, found)
        return found

    def _place(self, tensor: str, i: int, found: dict[Chain, _Boundary]) -> None:
        """Note which modules a tensor leaves."""
        start, end = self._scopes.starts[i], self._scopes.ends[i]
        if end:
            self.chains[tensor] = end
        chain = start if end is None else end
        if not chain:
            return
        reads = self._reads(tensor, i, chain)
        if end is None:
            reads = _Reads(len(chain), len(chain), reads.least, folded(None, self._scopes.notation))
        own = len(chain) if self._seams.ends_layer(i) else 0
        turned = self._seams.turned_within(tensor, i)
        for depth in range(reads.least + 1, len(chain) + 1):
            boundary = found[chain[:depth]]
            if depth <= turned:
                boundary.doubts[tensor] = TURNED
            elif reads.sure < depth or depth == own:
                boundary.certain.append(tensor)
            elif reads.copied < depth <= reads.doubtful:
                boundary.copied.append(tensor)
            else:
                boundary.doubts[tensor] = reads.reason
        self._note_lost(start, end, found)

    def _note_lost(self, start: Chain | None, end: Chain | None, found: dict[Chain, _Boundary]) -> None:
        """A merged node hides what the modules returned that ended within it."""
        if start and end is not None and start != end:
            for depth in range(common(start, end) + 1, len(start) + 1):
                norm = end[-1] if end else None
                found[start[:depth]].lost = folded(norm, self._scopes.notation)

    def _reads(self, tensor: str, i: int, chain: Chain) -> "_Reads":
        """Where the tensor is read, as depths of the chain."""
        depths = [len(chain)] * 3
        reason = ""
        if tensor in self._outputs:
            depths[SURE] = 0
        for reader in self._readers.get(tensor, ()):
            depth = common(chain, self._chain_of(reader))
            if depth < len(chain):
                sure, doubt = self._seams.read(tensor, i, reader)
                depths[sure] = min(depths[sure], depth)
                reason = reason or doubt
        return _Reads(depths[SURE], depths[COPIED], depths[DOUBTFUL], reason)

    def _chain_of(self, reader: int) -> Chain:
        """The modules that surely ran when a node read its inputs.

        A node without a scope lies in all modules that hold what it reads and everything that reads its
        outputs.
        """
        start = self._scopes.starts[reader]
        if start is not None:
            return start
        outputs = self._network.nodes[reader].makes
        chains = [self._scopes.starts[i] for name in outputs for i in self._readers.get(name, ())]
        if not chains or None in chains or not self._outputs.isdisjoint(outputs):
            return ()
        return reduce(lambda one, other: one[: common(one, other)], (chain or () for chain in chains))


@dataclass(frozen=True)
class _Reads:
    """How many of a chain's modules still run at the outermost read of a tensor, by how sure that read is."""

    sure: int
    copied: int
    doubtful: int
    reason: str

    @property
    def least(self) -> int:
        return min(self.sure, self.copied, self.doubtful)


def _computing_values(network: Network) -> list[Node]:
    """The nodes that compute with the input's values; others compute with weights, or with shapes only."""
    values, sizes = {spec.name for spec in network.inputs}, set[str]()
    found = []
    for node in network.nodes:
        reads = node.inputs + node.captured
        if values.isdisjoint(reads):
            if not sizes.isdisjoint(reads):
                sizes.update(node.outputs)
        elif node.op in ("Shape", "Size"):
            sizes.update(node.outputs)
        else:
            values.update(node.outputs)
            values.discard("")
            found.append(node)
        sizes.discard("")
    return found
