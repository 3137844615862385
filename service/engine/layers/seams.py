"""Where an exporter may have merged or left out operations between a tensor and the node that reads it.

A module that ends in such an operation returned another tensor than the one that is left in the file.
"""

import re
from collections import defaultdict

from service.engine.layers.scopes import Chain, Scopes
from service.engine.nodes import Network, Node

# Traced values that only hand on their input; a network in use leaves no operation of them.
_COPIES = re.compile(r"(clone|dropout|feature_dropout|contiguous|alias|detach\w*|lift_fresh\w*|identity)(_\d+)?")
# Parameters, buffers and constants of a traced program.
_STORED = re.compile(r"[pbc]_\w+")
_TURNS = ((0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1))
MERGED = "the exporter merged or left out an operation at the end of the module"
MAY_BE_MERGED = "a transposition follows that the exporter may have merged with one at the end of the module"
NO_SCOPE = "a node without a module's name reads what the module made"
TURNED = "the module changes the order of axes, and the operation that changes it back is not in the file"


class Seams:
    """What is doubtful of the reads in one network."""

    def __init__(self, network: Network, scopes: Scopes) -> None:
        self._nodes = network.nodes
        self._scopes = scopes
        self._values = {name for node in self._nodes for name in node.makes} | {s.name for s in network.inputs}
        self._turned = _turned(network, scopes) if scopes.notation == "torchscript" else {}

    def doubt(self, tensor: str, maker: int, reader: int, depth: int) -> str:
        """Why a node may not have read what a module returned, "" where it surely did."""
        node = self._nodes[reader]
        if self._scopes.starts[reader] is None:
            return NO_SCOPE
        if self._scopes.notation == "dynamo":
            return "" if self._is_recorded(tensor, node, reader) else MERGED
        if self._scopes.notation == "torchscript":
            return self._traced_doubt(tensor, maker, node, depth)
        return ""

    def _is_recorded(self, tensor: str, node: Node, reader: int) -> bool:
        """Whether the traced operation read this very value, or a copy of it."""
        origin = node.origin
        if origin is None or not origin.reads:
            return False
        if tensor in origin.reads:
            return True
        if self._scopes.starts[reader] != self._scopes.ends[reader]:
            return not any("Pad" in rule for rule in origin.rules)
        gone = [read for read in origin.reads if read not in self._values and not _STORED.fullmatch(read)]
        return bool(gone) and all(_COPIES.fullmatch(read) for read in gone)

    def _traced_doubt(self, tensor: str, maker: int, node: Node, depth: int) -> str:
        chain = self._scopes.ends[maker] or ()
        if self._turned.get(tensor, len(chain)) > depth and tensor in self._turned:
            return TURNED
        if node.op == "Gemm" and node.attributes.get("transA"):
            return MAY_BE_MERGED
        turns = node.op == "Transpose" and tuple(node.attributes.get("perm", ())) not in _TURNS
        return MAY_BE_MERGED if turns and not self._owns(maker, chain) else ""

    def _owns(self, maker: int, chain: Chain) -> bool:
        """Whether a layer of PyTorch with parameters of its own made the tensor, as its last operation."""
        path = chain[-1] if chain else ""
        node = self._nodes[maker]
        return node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization") and any(
            name.startswith(path + ".") for name in node.inputs
        )


def _turned(network: Network, scopes: Scopes) -> dict[str, int]:
    """Tensors whose axes lie in another order than those of their module's input, with the depth from which."""
    order: dict[str, tuple[int, ...]] = {}
    turned: dict[str, int] = {}
    return turned
