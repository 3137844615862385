"""The modules of a network by their dotted paths: which tensors each made, and which one it returned.

A path gives a tensor only where it is certain that the module returned it. An exporter may fold a norm into a
convolution, merge an operation at a module's end with what follows it, or leave it out.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.layers.norms import Folds, find_folds
from service.engine.layers.scopes import Chain, Scopes, read_scopes
from service.engine.layers.seams import Seams
from service.engine.nodes import Network, Node

KEEPS_NORMS = {
    "dynamo": "optimize=False",
    "torchscript": "do_constant_folding=False",
}
# Names in one message.
NAMED = 4


@dataclass(frozen=True)
class Modules:
    """`outputs` holds each module's returned tensor by path, `reasons` why a module has none.

    `chains` holds the modules around each tensor, outermost first.
    """

    chains: Mapping[str, Chain] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def path_of(self, tensor: str) -> str | None:
        """The path of the module that made a tensor."""
        chain = self.chains.get(tensor)
        return chain[-1] if chain else None


@dataclass
class _Boundary:
    """The tensors of one call of a module that are read outside of it; `doubts` are reasons by tensor."""

    certain: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)


def find_modules(network: Network) -> Modules:
    """Find every module that left an operation in the graph, and the norms that were folded."""
    scopes = read_scopes(network)
    if scopes.notation == "none":
        return Modules()
    readers = _readers(network.nodes)
    folds = find_folds(network.nodes, scopes, readers)
    survey = _Survey(network, scopes, folds, readers)
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
    return Modules(survey.chains, outputs, reasons)


@dataclass(frozen=True)
class _Output:
    tensor: str


def _returned(boundaries: Sequence[_Boundary], calls: Sequence[int], scopes: Scopes) -> _Output | str:
    """The tensor that a module returned, or why that is not certain."""
    certain = list(dict.fromkeys(tensor for b in boundaries for tensor in b.certain))
    doubts = {tensor: reason for b in boundaries for tensor, reason in b.doubts.items()}
    if len(boundaries) > 1 or max(calls) > 1:
        return f"the module is called more than once{_ask(certain)}"
    if len(certain) == 1 and (not doubts or scopes.notation == "dynamo"):
        return _Output(certain[0])
    if len(certain) > 1:
        return f"more than one of its tensors is used outside of it{_ask(certain)}"
    if doubts:
        return next(iter(doubts.values()))
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
        for name in node.reads:
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
        self, network: Network, scopes: Scopes, folds: Folds, readers: Mapping[str, Sequence[int]]
    ) -> None:
        self._network = network
        self._scopes = scopes
        self._folds = folds
        self._readers = readers
        self._dependent = network.dependent()
        self._outputs = frozenset(network.outputs)
        self._sizes = _sizes(network.nodes, self._dependent)
        self._seams = Seams(network, scopes)
        self.chains: dict[str, Chain] = {}

    def boundaries(self) -> dict[Chain, _Boundary]:
        """By chain, the tensors that are read outside of its last module."""
        found: dict[Chain, _Boundary] = defaultdict(_Boundary)
        for i, node in enumerate(self._network.nodes):
            start, end = self._scopes.starts[i], self._scopes.ends[i]
            for chain in (start, end):
                for depth in range(1, len(chain or ()) + 1):
                    found[(chain or ())[:depth]]
            for tensor in node.makes:
                if tensor in self._dependent and tensor not in self._sizes:
                    self._place(tensor, i, found)
        return found

    def _place(self, tensor: str, i: int, found: dict[Chain, _Boundary]) -> None:
        start, end = self._scopes.starts[i], self._scopes.ends[i]
        if end:
            self.chains[tensor] = end
        chain = end if end is not None else start
        if not chain and not start:
            return
        certain, doubtful, reason = self._depths(tensor, i, chain or ())
        for depth in range(1, len(chain or ()) + 1):
            boundary = found[(chain or ())[:depth]]
            if end is not None and certain < depth:
                boundary.certain.append(tensor)
            elif min(certain, doubtful) < depth:
                boundary.doubts[tensor] = reason or folded(None, self._scopes.notation)
        self._doubt_start(tensor, start, end, found)

    def _doubt_start(
        self, tensor: str, start: Chain | None, end: Chain | None, found: dict[Chain, _Boundary]
    ) -> None:
        """What a merged node made is no tensor of the modules that it left at its end."""
        if start and end is not None and start != end:
            for depth in range(_common(start, end) + 1, len(start) + 1):
                norm = end[-1] if end else None
                found[start[:depth]].doubts[tensor] = folded(norm, self._scopes.notation)

    def _depths(self, tensor: str, i: int, chain: Chain) -> tuple[int, int, str]:
        """How many of the chain's modules still run where the tensor is read: by certain and doubtful reads."""
        certain = 0 if tensor in self._outputs else len(chain)
        doubtful, reason = len(chain), ""
        for reader in self._readers.get(tensor, ()):
            start = self._scopes.starts[reader]
            depth = 0 if start is None else _common(chain, start)
            doubt = self._seams.doubt(tensor, i, reader, depth)
            if not doubt:
                certain = min(certain, depth)
            elif depth < doubtful:
                doubtful, reason = depth, doubt
        return certain, doubtful, reason


def _common(one: Chain, other: Chain) -> int:
    """How many modules two chains have in common, from the outermost on."""
    depth = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        depth += 1
    return depth


def _sizes(nodes: Iterable[Node], dependent: frozenset[str]) -> frozenset[str]:
    """Tensors that are computed from shapes, not from values."""
    sizes: set[str] = set()
    for node in nodes:
        reads = [name for name in node.reads if name in dependent]
        if node.op in ("Shape", "Size") or (reads and sizes.issuperset(reads)):
            sizes.update(node.makes)
    return frozenset(sizes)
