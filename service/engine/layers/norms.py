"""Batch normalizations that an exporter folded into the convolution before them, and which modules they were.

PyTorch's TorchScript exporter (`torch/csrc/jit/passes/onnx/eval_peephole.cpp`) gives the merged node the scope of
the convolution and weights without a name, such as `onnx::Conv_497`. The norm's own path is no longer in the
file, except where its activation is a module inside of it; else it follows from how networks name their modules.
Its dynamo exporter gives the merged node the scopes of the norm.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.layers.scopes import Chain, Scopes, local_name
from service.engine.nodes import Node

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_NORM = re.compile(r"(bn|norm|batch_?norm)\w*")
# A name that PyTorch gives to what is not a parameter of a module: `onnx::Conv_497`, or a bare number.
_ANONYMOUS = re.compile(r"\w+::\w+|\d+")
ACTIVATIONS = frozenset(
    "Abs Add Celu Clip Constant Div Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish Mul PRelu Relu Selu Sigmoid "
    "Softplus Sub Tanh Cast Exp Max Min Pow".split()
)
# Containers that hold a convolution, its norm and nothing after it.
_PAIRS = frozenset("downsample shortcut project skip".split())


@dataclass
class Folds:
    """By the path of a convolution, the path of the norm that was folded into it; None where that is not known."""

    norm_of: dict[str, str | None] = field(default_factory=dict)


def find_folds(nodes: Sequence[Node], scopes: Scopes, readers: Mapping[str, Sequence[int]]) -> Folds:
    """Find the merged nodes, and correct in `scopes` which module read their inputs or made their outputs."""
    if scopes.notation == "dynamo":
        return _recorded(nodes, scopes)
    if scopes.notation == "torchscript":
        return _Traced(nodes, scopes, readers).find()
    return Folds()


def _recorded(nodes: Sequence[Node], scopes: Scopes) -> Folds:
    """Merged nodes carry the norm's scopes; the convolution's name is that of its weight."""
    folds = Folds()
    called = {path for chain in scopes.calls for path in chain}
    for i, node in enumerate(nodes):
        norm = scopes.ends[i]
        merged = node.origin and any("BatchNorm" in rule for rule in node.origin.rules)
        if not merged or not norm or len(node.inputs) < 2:
            continue
        path, _, _ = node.inputs[1].rpartition(".")
        if path and path not in called:
            folds.norm_of[path] = norm[-1]
            scopes.starts[i] = _chain_to(path, called)
    return folds


def _chain_to(path: str, called: Collection[str]) -> Chain:
    """The path behind those of the modules around it that are called."""
    atoms = path.split(".")
    outer = (".".join(atoms[:depth]) for depth in range(1, len(atoms)))
    return (*(name for name in outer if name in called), path)


class _Traced:
    """The merged convolutions of a TorchScript export."""

    def __init__(self, nodes: Sequence[Node], scopes: Scopes, readers: Mapping[str, Sequence[int]]) -> None:
        self._nodes = nodes
        self._scopes = scopes
        self._readers = readers
        self._copied = {n.outputs[0]: n.inputs[0] for n in nodes if n.op == "Identity" and n.inputs and n.outputs}
        self._made = {name for node in nodes for name in node.makes} - self._copied.keys()
        self._ops: dict[str, set[str]] = defaultdict(set)
        for chain, node in zip(scopes.ends, nodes, strict=True):
            for path in chain or ():
                self._ops[path].add(node.op)
        self._merged = [i for i, node in enumerate(nodes) if self._is_merged(i, node)]

    def find(self) -> Folds:
        """Name the norms, and move the outputs of merged nodes to them."""
        folds, found = Folds(), {i: self._norm(i) for i in self._merged}
        # Followers of a pattern that other places of the network prove.
        proven = {self._pattern(self._chain(i)) for i, norm in found.items() if norm and self._is_between(i)}
        for i in self._merged:
            chain = self._chain(i)
            if found[i] is None and self._pattern(chain) in proven - {None} and self._is_last(chain):
                found[i] = self._absent((*chain[:-1], self._next(chain)))
        claims = [norm for norm in found.values() if norm]
        for i, norm in found.items():
            known = norm if norm and claims.count(norm) == 1 else None
            folds.norm_of[self._chain(i)[-1]] = known[-1] if known else None
            self._scopes.ends[i] = known
        return folds

    def _chain(self, i: int) -> Chain:
        chain = self._scopes.starts[i]
        assert chain
        return chain

    def _is_merged(self, i: int, node: Node) -> bool:
        """Whether weight and bias are constants, neither of which is a module's parameter."""
        if node.op not in _CONVOLUTIONS or len(node.inputs) < 3 or not self._scopes.starts[i]:
            return False
        if self._scopes.ends[i] != self._scopes.starts[i]:
            return False
        stored = (self._copied.get(name, name) for name in node.inputs[1:3])
        named = any(_ANONYMOUS.fullmatch(name) is None for name in node.inputs[1:3])
        return not named and all(name not in self._made for name in stored)

    def _norm(self, i: int) -> Chain | None:
        """The chain of the norm, where the file or the convolution's name shows it."""
        chain = self._chain(i)
        around = self._around_activation(chain, i)
        if around or len(chain) < 1:
            return around
        return self._follower(chain, i) if self._in_sequence(chain) else self._sibling(chain, i)

    def _follower(self, chain: Chain, i: int) -> Chain | None:
        """The next member of a sequence, or what follows the sequence where its name tells which."""
        container = chain[-2].rpartition(".")[2]
        if self._is_between(i) or (container in _PAIRS and self._is_last(chain)):
            return self._absent((*chain[:-1], self._next(chain)))
        if re.fullmatch(r"conv\d*", container) and self._is_last(chain):
            return self._sibling(chain[:-1], i)
        return None

    def _absent(self, chain: Chain) -> Chain | None:
        """A module that has no operation of its own, as one that was folded; None for others."""
        return None if chain[-1] in self._ops else chain

    def _is_last(self, chain: Chain) -> bool:
        """Whether no later member of the sequence has an operation."""
        outer, _, number = chain[-1].rpartition(".")
        members = (path.removeprefix(outer + ".") for path in self._ops if path.startswith(outer + "."))
        return not any(name.isdecimal() and int(name[:9]) > int(number[:9]) for name in members)

    def _sibling(self, chain: Chain, i: int) -> Chain | None:
        """The norm that networks name after its convolution."""
        parent = chain[-2] if len(chain) > 1 else ""
        name = local_name(chain[-1], parent) if parent else chain[-1]
        found = re.fullmatch(r"(conv|linear|fc|convs\.)(\d*)", name)
        if found is None:
            norm = self._by_order(chain, parent) if name.startswith("conv_") else None
        elif found[1] == "convs.":
            norm = f"bns.{found[2]}"
        else:
            norm = self._numbered(chain, i, found[1], found[2])
        if norm is None:
            return None
        return self._absent((*chain[:-1], f"{parent}.{norm}" if parent else norm))

    def _numbered(self, chain: Chain, i: int, kind: str, number: str) -> str | None:
        """`bn2` of `conv2`; where `act2` follows, it confirms or corrects the number."""
        active = self._activation_number(chain, i)
        if kind == "fc" and active != number:
            return None
        if not number:
            return f"bn{active or ''}"
        if active not in (None, number) or self._is_pre_activated(chain, i):
            return None
        return f"bn{number}"

    def _activation_number(self, chain: Chain, i: int) -> str | None:
        """The number of the `act0` or `relu0` beside the convolution that alone reads its output."""
        numbers = set()
        for follower in self._followers(i):
            name = follower[len(chain) - 1].rpartition(".")[2] if len(follower) >= len(chain) else ""
            found = re.fullmatch(r"(?:act|relu)(\d+)", name) if follower[: len(chain) - 1] == chain[:-1] else None
            numbers.add(found[1] if found else None)
        return numbers.pop() if len(numbers) == 1 else None

    def _is_pre_activated(self, chain: Chain, i: int) -> bool:
        """Whether norms may come before their convolutions: the block starts with an activation, or one
        of its convolutions was not merged."""
        block = chain[:-1]
        inside = [j for j, c in enumerate(self._scopes.starts) if c and c[: len(block)] == block]
        convolutions = [
            j
            for j in inside
            if self._nodes[j].op in _CONVOLUTIONS and re.fullmatch(r".*\bconv\d+", self._chain(j)[-1])
            and len(self._chain(j)) == len(chain)
        ]
        merged = set(self._merged)
        if any(j not in merged for j in convolutions):
            return True
        before = {self._nodes[j].op for j in inside if j < convolutions[0]} if block and convolutions else set()
        return bool(before & ACTIVATIONS - {"Constant", "Cast"})

    def _by_order(self, chain: Chain, parent: str) -> str | None:
        """`bn1`, `bn2`, `bn3` of an inverted residual, in the order in which its convolutions run."""
        start = f"{parent}.conv_" if parent else "conv_"
        beside = [
            j
            for j, c in enumerate(self._scopes.starts)
            if c and c[:-1] == chain[:-1] and c[-1].startswith(start) and self._nodes[j].op in _CONVOLUTIONS
        ]
        if any(j not in set(self._merged) for j in beside):
            return None
        known = {n: self._around_activation(self._chain(j), j) for n, j in enumerate(beside, 1)}
        shown = {n: norm[-1] for n, norm in known.items() if norm}
        prefix = f"{parent}.bn" if parent else "bn"
        if not shown or any(path != f"{prefix}{n}" for n, path in shown.items()):
            return None
        return next((f"bn{n}" for n, j in enumerate(beside, 1) if self._chain(j) == chain), None)

    def _around_activation(self, chain: Chain, i: int) -> Chain | None:
        """A norm that holds its own activation, when only that reads the output."""
        found = {self._norm_around(chain, reader) for reader in self._followers(i)}
        return found.pop() if len(found) == 1 else None

    def _norm_around(self, chain: Chain, reader: Chain) -> Chain | None:
        for depth, path in enumerate(reader):
            is_norm = _NORM.fullmatch(path.rpartition(".")[2]) or reader[depth + 1 :] == (f"{path}.act",)
            if path not in chain and is_norm and self._ops[path] <= ACTIVATIONS:
                return reader[: depth + 1]
        return None

    def _followers(self, i: int) -> set[Chain]:
        """The modules that read the output; none where one is not known."""
        chains = {self._scopes.starts[r] for r in self._readers.get(self._nodes[i].outputs[0], ())}
        return set() if None in chains else {chain for chain in chains if chain}

    def _in_sequence(self, chain: Chain) -> bool:
        """Whether the convolution is a numbered member of a container that was called."""
        last = chain[-1].rpartition(".")
        return last[2].isdecimal() and len(chain) > 1 and chain[-2] == last[0]

    def _next(self, chain: Chain) -> str:
        """The path of the following member of a sequence."""
        outer, _, number = chain[-1].rpartition(".")
        return f"{outer}.{int(number) + 1}" if number.isdecimal() and len(number) < 10 else ""

    def _is_between(self, i: int) -> bool:
        """Whether the module after next of the same sequence reads the output."""
        chain = self._chain(i)
        if not self._in_sequence(chain):
            return False
        after = self._next((*chain[:-1], self._next(chain)))
        return any(after in follower for follower in self._followers(i))

    def _pattern(self, chain: Chain) -> tuple[str, str] | None:
        """Container and position in it, equal for the same member of the same kind of sequence."""
        if not self._in_sequence(chain):
            return None
        outer, _, number = chain[-1].rpartition(".")
        names = [atom for atom in outer.split(".") if not atom.isdecimal()]
        return (names[-1], number) if names else None
