"""Batch normalizations that an exporter folded into the convolution before them, and which modules they were.

PyTorch's TorchScript exporter (`torch/csrc/jit/passes/onnx/eval_peephole.cpp`) gives the merged node the
scope of the convolution and weights without a name, such as `onnx::Conv_497`. The norm's own path is no
longer in the file, except where its activation is a module inside of it; else it follows from how networks
name their modules. Its dynamo exporter gives the merged node the scopes of the norm.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from service.engine.layers.scopes import Chain, Scopes
from service.engine.nodes import Network, Node

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_NORM = re.compile(r"(bn|norm|batch_?norm)\w*")
# A name that PyTorch gives to what is not a parameter of a module: `onnx::Conv_497`, or a bare number.
_ANONYMOUS = re.compile(r"\w+::\w+|\d+")
# Operators that activation functions are exported as.
_OPERATORS = """
Abs Add Cast Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Max Min Mish Mul PRelu Pow Relu
Selu Sigmoid Softplus Sub Tanh
"""
ACTIVATIONS = frozenset(_OPERATORS.split())
# Norms of timm's SelectiveKernel and of separable convolutions, which have no numbers.
_NAMED = {"fc_reduce": "bn"}
_SEPARATE = {"conv_dw": "bn_dw", "conv_pw": "bn_pw"}
_ACTIVATION = re.compile(r"(?:act|relu)(\d+)")
# Containers that hold a convolution, its norm and nothing after it.
_PAIRS = ("downsample", "shortcut", "project", "skip")


@dataclass
class Folds:
    """By the path of a convolution, that of the norm which was folded into it, None where it is not known.

    `aliases` are paths of norms by the other name that they may have.
    """

    norm_of: dict[str, str | None] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)


def computed_weights(network: Network) -> frozenset[str]:
    """What nodes compute, other than copies of constants."""
    computed: set[str] = set()
    for node in network.nodes:
        copies = node.op == "Constant" or (node.op == "Identity" and computed.isdisjoint(node.inputs))
        if not copies:
            computed.update(node.outputs)
    return frozenset(computed)


def find_folds(
    nodes: Sequence[Node], scopes: Scopes, readers: Mapping[str, Sequence[int]], computed: frozenset[str]
) -> Folds:
    """Find the merged nodes, and correct in `scopes` which module read their inputs or made their outputs.

    `computed` are weights that the graph computes: they have no name of a parameter, and nothing was folded.
    """
    if scopes.notation == "dynamo":
        return _recorded(nodes, scopes)
    if scopes.notation == "torchscript":
        return _Traced(nodes, scopes, readers, computed).find()
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

    def __init__(
        self,
        nodes: Sequence[Node],
        scopes: Scopes,
        readers: Mapping[str, Sequence[int]],
        computed: frozenset[str],
    ) -> None:
        self._nodes = nodes
        self._scopes = scopes
        self._readers = readers
        self._computed = computed
        self._inside = _Contents(nodes, scopes)
        self._makers = {name: i for i, node in enumerate(nodes) for name in node.outputs}
        # In the order of the file.
        self._merged = {i: None for i, node in enumerate(nodes) if self._is_merged(i, node)}

    def find(self) -> Folds:
        """Name the norms, and move the outputs of merged nodes to them."""
        folds, found = Folds(), {i: self._norm(i) for i in self._merged}
        proven = {_pattern(self._chain(i)) for i, norm in found.items() if norm and self._is_between(i)}
        for i in self._merged:
            chain = self._chain(i)
            if found[i] is None and _pattern(chain) in proven - {None} and self._inside.is_last(chain[-1]):
                found[i] = self._absent((*chain[:-1], next_member(chain[-1])))
        claims = Counter(norm for norm in found.values() if norm)
        for i, norm in found.items():
            known = norm if norm and claims[norm] == 1 else None
            folds.norm_of[self._chain(i)[-1]] = known[-1] if known else None
            self._scopes.ends[i] = known
            if known and local_name(known) == "bn":
                folds.aliases[known[-1].removesuffix("bn") + "norm"] = known[-1]
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
        return all(_ANONYMOUS.fullmatch(n) and n not in self._computed for n in node.inputs[1:3])

    def _norm(self, i: int) -> Chain | None:
        """The chain of the norm, where the file or the convolution's name shows it."""
        chain = self._chain(i)
        around = {self._norm_around(chain, reader) for reader in self._followers(i)}
        if len(around) == 1 and None not in around:
            return around.pop()
        if self._is_between(i):
            return self._absent((*chain[:-1], next_member(chain[-1])))
        return self._after_sequence(chain, i) if _is_member(chain) else self._sibling(chain, i)

    def _norm_around(self, chain: Chain, reader: Chain) -> Chain | None:
        """A norm that holds its own activation, which reads the output."""
        for depth, path in enumerate(reader):
            if path not in chain and (
                (_NORM.fullmatch(local_name(reader[: depth + 1])) and self._inside.ops[path] <= ACTIVATIONS)
                or self._inside.children[path] == {f"{path}.act"}
            ):
                return reader[: depth + 1]
        return None

    def _followers(self, i: int) -> set[Chain]:
        """The modules that read the output; none where one is not known."""
        chains = {self._scopes.starts[r] for r in self._readers.get(self._nodes[i].outputs[0], ())}
        return {chain for chain in chains if chain is not None} if None not in chains else set()

    def _is_between(self, i: int) -> bool:
        """Whether the module after next of the same sequence reads the output."""
        after = next_member(next_member(self._chain(i)[-1]))
        return bool(after) and any(after in follower for follower in self._followers(i))

    def _after_sequence(self, chain: Chain, i: int) -> Chain | None:
        """The norm of a sequence's last convolution: its next member, or what follows the sequence."""
        container = local_name(chain[:-1])
        if not self._inside.is_last(chain[-1]) or self._inside.first_op[chain[:-1]] in ACTIVATIONS:
            return None
        if container in _PAIRS:
            return self._absent((*chain[:-1], next_member(chain[-1])))
        deep = self._inside.first_member[chain[:-1]] != chain[-1]
        return self._sibling(chain[:-1], i) if deep and re.fullmatch(r"conv\d*", container) else None

    def _absent(self, chain: Chain) -> Chain | None:
        """A module that has no operation of its own, as one that was folded; None for others."""
        return None if chain[-1] in self._inside.ops else chain

    def _sibling(self, chain: Chain, i: int) -> Chain | None:
        """The norm that networks name after its convolution."""
        name = local_name(chain)
        found = re.fullmatch(r"(conv|linear|fc|c|convs\.)(\d*)", name)
        if name in _NAMED:
            norm: str | None = _NAMED[name]
        elif found is None:
            norm = self._by_order(chain, i) if name.startswith("conv_") else None
        elif found[1] == "convs.":
            norm = f"bns.{found[2]}"
        else:
            norm = self._numbered(chain, i, found[1], found[2])
        return self._absent((*chain[:-1], _joined(chain[:-1], norm))) if norm else None

    def _numbered(self, chain: Chain, i: int, kind: str, number: str) -> str | None:
        """`bn2` of `conv2`; where `act2` follows, it confirms the number."""
        active = self._activation_number(chain, i)
        unclear = active is None and self._is_pre_activated(chain, i, kind)
        if kind == "fc" and local_name(chain[:-1]) == "se" and active is None:
            return "bn"
        if unclear or (number and active not in (None, number)):
            return None
        if not number:
            return None if kind == "fc" else f"bn{active or ''}"
        return f"{self._inside.word}{number}"

    def _activation_number(self, chain: Chain, i: int) -> str | None:
        """The number of the `act0` or `relu0` in the convolution's module that alone reads its output."""
        numbers = set()
        for follower in self._followers(i):
            is_sibling = len(follower) >= len(chain) and follower[: len(chain) - 1] == chain[:-1]
            found = _ACTIVATION.fullmatch(local_name(follower[: len(chain)])) if is_sibling else None
            numbers.add(found[1] if found else None)
        return numbers.pop() if len(numbers) == 1 else None

    def _is_pre_activated(self, chain: Chain, i: int, kind: str) -> bool:
        """Whether the block's norms may come before their convolutions.

        That is so where its first one reads an activation of the block, or where one was not merged.
        """
        alike = [j for j in self._inside.members[chain[:-1]] if self._is_alike(j, kind)] or [i]
        if any(j not in self._merged for j in alike):
            return True
        maker = self._makers.get(self._nodes[alike[0]].inputs[0])
        start = None if maker is None else self._scopes.starts[maker]
        inside = start is not None and len(chain) > 1 and start[: len(chain) - 1] == chain[:-1]
        return inside and maker is not None and self._nodes[maker].op in ACTIVATIONS

    def _is_alike(self, i: int, kind: str) -> bool:
        """Whether a node is a convolution of the same kind of name."""
        name = local_name(self._chain(i))
        return self._nodes[i].op in _CONVOLUTIONS and re.fullmatch(rf"{kind}\d*", name) is not None

    def _by_order(self, chain: Chain, i: int) -> str | None:
        """`bn3` of an inverted residual's third convolution, where the file shows `bn1` and `bn2`."""
        active = self._activation_number(chain, i)
        start = _joined(chain[:-1], "conv_")
        order = [path for path in self._inside.order[chain[:-1]] if path.startswith(start)]
        own = _SEPARATE.get(local_name(chain))
        if own and not any(_joined(chain[:-1], f"bn{n}") in self._inside.ops for n in (1, 2, 3)):
            return own
        number = order.index(chain[-1]) + 1
        before = (_joined(chain[:-1], f"bn{n}") for n in range(1, number))
        shown = number > 1 or active == "1"
        return f"bn{number}" if shown and all(path in self._inside.ops for path in before) else None


class _Contents:
    """What the modules of a TorchScript export hold."""

    def __init__(self, nodes: Sequence[Node], scopes: Scopes) -> None:
        # By path: the operators inside, and the modules that the module called; itself where it computes.
        self.ops: dict[str, set[str]] = defaultdict(set)
        self.children: dict[str, set[str]] = defaultdict(set)
        # By chain: the modules that were called in order, and the nodes of those.
        self.order: dict[Chain, dict[str, None]] = defaultdict(dict)
        self.members: dict[Chain, list[int]] = defaultdict(list)
        self.first_op: dict[Chain, str] = {}
        self.first_member: dict[Chain, str] = {}
        for i, (node, start) in enumerate(zip(nodes, scopes.starts, strict=True)):
            self._add(i, node, start or ())
        self._last: dict[str, int] = {}
        for path in self.ops:
            outer, _, number = path.rpartition(".")
            if number.isdecimal():
                self._last[outer] = max(int(number[:9]), self._last.get(outer, 0))
        names = {atom for path in self.ops for atom in path.split(".") if _NORM.fullmatch(atom)}
        # Networks that number their norms call them all one or all the other.
        self.word = "norm" if names and not any(name.startswith("bn") for name in names) else "bn"

    def _add(self, i: int, node: Node, chain: Chain) -> None:
        for depth, path in enumerate(chain):
            self.ops[path].add(node.op)
            self.children[path].add(chain[min(depth + 1, len(chain) - 1)])
            outer = chain[:depth]
            self.order[outer][path] = None
            self.first_op.setdefault(outer, node.op)
            self.first_member.setdefault(outer, path)
        if chain:
            self.members[chain[:-1]].append(i)

    def is_last(self, path: str) -> bool:
        """Whether no later member of a sequence has an operation."""
        outer, _, number = path.rpartition(".")
        return number.isdecimal() and self._last.get(outer, -1) <= int(number[:9])


def local_name(chain: Chain) -> str:
    """A module's name within the one that called it."""
    outer = chain[-2] + "." if len(chain) > 1 else ""
    return chain[-1].removeprefix(outer) if chain else ""


def next_member(path: str) -> str:
    """The path of the following member of a sequence, "" for no member of one."""
    outer, _, number = path.rpartition(".")
    return f"{outer}.{int(number) + 1}" if outer and number.isdecimal() and len(number) < 10 else ""


def _joined(outer: Chain, name: str) -> str:
    return f"{outer[-1]}.{name}" if outer else name


def _is_member(chain: Chain) -> bool:
    """Whether a module is a numbered member of the container that called it."""
    outer, _, number = chain[-1].rpartition(".")
    return number.isdecimal() and len(chain) > 1 and chain[-2] == outer


def _pattern(chain: Chain) -> tuple[str, str] | None:
    """Container and position in it, equal for the same member of the same kind of sequence."""
    outer, _, number = chain[-1].rpartition(".")
    names = [atom for atom in outer.split(".") if not atom.isdecimal()]
    return (names[-1], number) if names and number.isdecimal() else None
