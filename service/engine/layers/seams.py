"""Where an exporter may have merged or left out operations between a tensor and the node that reads it.

A module that ends in such an operation returned another tensor than the one that is left in the file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.engine.layers.scopes import Chain, Scopes
from service.engine.nodes import Network, Node

# Traced values that only hand on their input; a network in use leaves no operation of them, and a slice only
# where it takes less than all.
_COPIES = re.compile(
    r"(clone|dropout|feature_dropout|contiguous|alias|detach|lift_fresh_copy|identity|slice)_?(_\d+)?"
)
# Parameters, buffers and constants of a traced program.
_STORED = re.compile(r"[pbc]_\w+")
# Orders of axes that two sensible transpositions do not give together.
_SINGLE = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1))
_DIRECTIONS = {(0, 2, 3, 1): 1, (0, 3, 1, 2): -1}
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Split", "Gather", "Einsum")
_LAYER = re.compile(
    r"torch\.nn\.modules\."
    r"(?:conv|linear|batchnorm|instancenorm|normalization|pooling|activation)\.(?!MultiheadAttention)"
)
MERGED = "the exporter merged or left out an operation at the end of the module"
MAY_BE_MERGED = "a transposition follows that the exporter may have merged with one at the end of the module"
NO_SCOPE = "a node without a module's name reads what the module made"
TURNED = "the module changes the order of axes, and the operation that changes it back is not in the file"


# What a read says of its tensor: the module returned it, a copy of it was read, or perhaps something else.
SURE, COPIED, DOUBTFUL = range(3)


@dataclass(frozen=True)
class Turn:
    """A transposition between channels first and channels last, which no reshape has hidden since."""

    direction: int
    chain: Chain


class Seams:
    """What the reads in one network say of the modules that made the tensors."""

    def __init__(self, network: Network, scopes: Scopes, readers: Mapping[str, Sequence[int]]) -> None:
        self._nodes = network.nodes
        self._readers = readers
        self._scopes = scopes
        self._values = {name for node in self._nodes for name in node.outputs}
        self._values.update(spec.name for spec in network.inputs)
        # None is the order of the input; a tensor whose order is not known is not in it.
        self._turns: dict[str, Turn | None] = {}
        # Transpositions without one before that they undo.
        self._open: list[Turn] = []
        if scopes.notation == "torchscript":
            self._find_turns(spec.name for spec in network.inputs)

    def read(self, tensor: str, maker: int, reader: int) -> tuple[int, str]:
        """How sure it is that a node read what a module returned, and a reason where it is doubtful."""
        node = self._nodes[reader]
        if self._scopes.starts[reader] is None:
            return DOUBTFUL, NO_SCOPE
        if self._scopes.notation == "dynamo":
            sure = self._recorded(tensor, maker, reader)
            return sure, MERGED if sure == DOUBTFUL else ""
        if self._scopes.notation == "torchscript" and self._may_be_merged(maker, node):
            return DOUBTFUL, MAY_BE_MERGED
        return SURE, ""

    def ends_layer(self, maker: int) -> bool:
        """Whether one of PyTorch's own layers made the tensor, which returns what its operation gives."""
        origin = self._nodes[maker].origin
        return origin is not None and _LAYER.match(origin.kind) is not None

    def turned_within(self, tensor: str, maker: int) -> int:
        """How many of the chain's modules, outermost first, changed the order of axes and may have changed it
        back in an operation that is not in the file."""
        turn, chain = self._turns.get(tensor), self._scopes.ends[maker]
        if turn is None or chain is None or self._nodes[maker].op == "Transpose":
            return 0
        undone = any(
            t.direction == -turn.direction and t.chain[: len(turn.chain)] != turn.chain for t in self._open
        )
        return common(turn.chain, chain) if turn.chain == chain or undone else 0

    def _recorded(self, tensor: str, maker: int, reader: int) -> int:
        """Whether the traced operation read this very value, or an equal one.

        Equal values of two modules become one, and a convolution that was folded into another node is not
        recorded.
        """
        node = self._nodes[reader]
        origin = node.origin
        if origin is None or not origin.reads:
            return DOUBTFUL
        if tensor in origin.reads:
            return SURE
        if self._scopes.starts[reader] != self._scopes.ends[reader]:
            if any("Pad" in rule for rule in origin.rules):
                return DOUBTFUL
            return SURE if self._is_own(tensor, maker) else COPIED
        gone = [read for read in origin.reads if read not in self._values and not _STORED.fullmatch(read)]
        if len(origin.reads) == len(node.inputs):
            gone = [origin.reads[node.inputs.index(tensor)]]
        return COPIED if gone and all(_COPIES.fullmatch(read) for read in gone) else DOUBTFUL

    def _is_own(self, tensor: str, maker: int) -> bool:
        """Whether no equal value of another module became this one: no more read it than when traced."""
        origin = self._nodes[maker].origin
        if origin is None or origin.users is None or origin.value != tensor:
            return False
        reads = [self._nodes[i].origin for i in self._readers.get(tensor, ())]
        return len({read.value if read else str(i) for i, read in enumerate(reads)}) <= origin.users

    def _may_be_merged(self, maker: int, node: Node) -> bool:
        """Whether a transposition reads the tensor that may have been one of the module's own before."""
        if node.op == "Gemm" and node.attributes.get("transA"):
            return True
        turns = node.op == "Transpose" and tuple(node.attributes.get("perm", ())) not in _SINGLE
        return turns and not self._owns(maker)

    def _owns(self, maker: int) -> bool:
        """Whether a layer with parameters of its own made the tensor, as its last operation."""
        node, chain = self._nodes[maker], self._scopes.ends[maker]
        layers = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization")
        path = chain[-1] if chain else ""
        return node.op in layers and any(name.startswith(path + ".") for name in node.inputs)

    def _find_turns(self, inputs: Iterable[str]) -> None:
        """Follow the order of axes from the inputs on, as far as no reshape hides it."""
        self._turns.update(dict.fromkeys(inputs))
        for node, chain in zip(self._nodes, self._scopes.ends, strict=True):
            known = [self._turns[name] for name in node.inputs if name in self._turns]
            mixes = node.op == "MatMul" and self._values.issuperset(node.inputs)
            if mixes or node.op in _RESHAPES:
                continue
            if node.op == "Transpose":
                self._turn(node, chain or (), known)
            elif known:
                self._turns.update(dict.fromkeys(node.outputs, known[0]))

    def _turn(self, node: Node, chain: Chain, before: Sequence[Turn | None]) -> None:
        direction = _DIRECTIONS.get(tuple(node.attributes.get("perm", ())), 0)
        turn = Turn(direction, chain)
        if direction and (not before or before[0] is None):
            self._open.append(turn)
        if direction and before:
            self._turns[node.outputs[0]] = turn if before[0] is None else None


def common(one: Chain, other: Chain) -> int:
    """How many modules two chains have in common, from the outermost on."""
    depth = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        depth += 1
    return depth
