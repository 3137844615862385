"""Which modules were being called when each node was traced, from what exporters write into a file.

PyTorch's TorchScript exporter joins module names into node names (`/layer1/layer1.0/conv1/Conv`,
`torch/csrc/jit/passes/onnx/naming.cpp`), its dynamo exporter writes them into metadata, and tf2onnx keeps the
names of TensorFlow's operations (`StatefulPartitionedCall/resnet50/conv1_relu/Relu`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.engine.nodes import Network, Node

# Paths of modules, each called by the one before it, outermost first.
Chain = tuple[str, ...]
Notation = Literal["dynamo", "torchscript", "keras", "none"]
# Deeper nesting and longer names than any network has; a hostile file cannot make more work than this.
MAX_DEPTH = 32
MAX_NAME_LENGTH = 1024
_OUTPUT = re.compile(r"(/.*)_output_\d+")
_REPEATED = re.compile(r"(.*?)_([1-9]\d*)")
_NUMBERED = re.compile(r"_\d+$")
_PARAMETER = re.compile(r"([^:/]+)\.\w+")
# tf2onnx numbers the nodes that it adds itself, and outputs after a colon.
_ADDED = re.compile(r"(__\d+)?(:\d+)?$")
_WRAPPERS = ("StatefulPartitionedCall", "PartitionedCall")


@dataclass(frozen=True)
class Scopes:
    """`starts` and `ends` are each node's chains: of the module that read its inputs, and of that which made
    its outputs; they differ where the exporter merged operations. None where a chain is not known.

    `calls` is how often the modules of a chain were called, at least, as far as its nodes show.
    """

    notation: Notation
    starts: list[Chain | None]
    ends: list[Chain | None]
    calls: Mapping[Chain, int]


def read_scopes(network: Network) -> Scopes:
    """Read the chains of all nodes in the notation that the file uses."""
    nodes = network.nodes
    if any(node.origin for node in nodes):
        return _from_origins(nodes)
    if any(_is_traced(node) for node in nodes):
        return _from_names(nodes)
    if network.producer.startswith("tf2onnx") or any(node.name.startswith(_WRAPPERS) for node in nodes):
        return _from_operations(nodes)
    nothing: list[Chain | None] = [None] * len(nodes)
    return Scopes("none", nothing, list(nothing), {})


def _from_origins(nodes: Sequence[Node]) -> Scopes:
    """The scopes of dynamo's metadata, in which calls have no number: only the operations repeat."""
    chains = [_origin_chain(node) for node in nodes]
    values: dict[Chain, dict[str, str]] = defaultdict(dict)
    for node, chain in zip(nodes, chains, strict=True):
        if node.origin and chain is not None:
            values[chain][node.origin.value] = _NUMBERED.sub("", node.origin.value)
    calls = {chain: min(Counter(found.values()).values()) for chain, found in values.items()}
    return Scopes("dynamo", chains, list(chains), calls)


def _origin_chain(node: Node) -> Chain | None:
    if node.origin is None or len(node.origin.scopes) > MAX_DEPTH:
        return None
    return tuple(scope for scope in node.origin.scopes if scope)


def _is_traced(node: Node) -> bool:
    """Whether a node has a name of PyTorch's tracer: its first output repeats it."""
    return node.name.startswith("/") and bool(node.outputs) and node.outputs[0] == f"{node.name}_output_0"


def _from_names(nodes: Sequence[Node]) -> Scopes:
    """The scopes in TorchScript's node names; those of outputs count for what a node made."""
    starts = [_components(node.name) for node in nodes]
    ends = [
        start if _is_traced(n) else _components(_output_name(n))
        for n, start in zip(nodes, starts, strict=True)
    ]
    parameters = _parameters(nodes, starts)
    resolved = _Resolver({scope for scope in (*starts, *ends) if scope is not None}, parameters)
    calls: dict[Chain, set[tuple[str, ...]]] = defaultdict(set)
    for scope in (*starts, *ends):
        if scope is not None and (chain := resolved.chain(scope)) is not None:
            calls[chain].add(scope)
    return Scopes(
        "torchscript",
        [None if scope is None else resolved.chain(scope) for scope in starts],
        [None if scope is None else resolved.chain(scope) for scope in ends],
        {chain: len(scopes) for chain, scopes in calls.items()},
    )


def _output_name(node: Node) -> str:
    """The name of the node that made the output; an optimizer that merges nodes keeps the last one's."""
    found = _OUTPUT.fullmatch(node.outputs[0]) if node.outputs else None
    return found[1] if found else node.name


def _components(name: str) -> tuple[str, ...] | None:
    """The scopes in a name of the tracer; None for other names."""
    if not name.startswith("/") or len(name) > MAX_NAME_LENGTH:
        return None
    parts = tuple(name.split("/")[1:-1])
    return parts if len(parts) <= MAX_DEPTH and all(parts) else None


def _parameters(
    nodes: Sequence[Node], scopes: Sequence[tuple[str, ...] | None]
) -> Mapping[tuple[str, ...], set[str]]:
    """By scope, the modules whose parameters its nodes read directly."""
    owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for node, scope in zip(nodes, scopes, strict=True):
        for name in node.inputs if scope else ():
            found = _PARAMETER.fullmatch(name)
            if found and scope:
                owners[scope].add(found[1])
    return owners


class _Resolver:
    """From scopes of the tracer to module paths.

    A scope holds a module's name without its parents, and ends in a number where an earlier one has the same
    names: `relu_1` is the second call of `relu`, unless a module is called so. A container that is not
    called itself (ModuleDict) is missing; parameters have the whole path.
    """

    def __init__(
        self, scopes: Iterable[tuple[str, ...]], parameters: Mapping[tuple[str, ...], set[str]]
    ) -> None:
        self._scopes = set(scopes)
        self._parameters = parameters
        self._callers = {scope[:depth] for scope in self._scopes for depth in range(1, len(scope))}
        self._paths: dict[tuple[str, ...], str] = {}
        self._chains: dict[tuple[str, ...], Chain | None] = {}
        for scope in sorted(self._scopes):
            self._learn(scope)

    def chain(self, scope: tuple[str, ...]) -> Chain | None:
        """The modules of a scope, outermost first; None where they contradict each other."""
        if scope not in self._chains:
            first = self._first_call(scope)
            self._chains[scope] = tuple(self._path(first[: d + 1]) for d in range(len(first)))
        return self._chains[scope]

    def _path(self, scope: tuple[str, ...]) -> str:
        """The path that parameters showed, else the names joined."""
        if scope not in self._paths:
            name = scope[-1]
            if len(scope) > 1:
                parent = self._path(scope[:-1])
                repeats = name.startswith(scope[-2] + ".")
                name = f"{parent}{name.removeprefix(scope[-2])}" if repeats else f"{parent}.{name}"
            self._paths[scope] = name
        return self._paths[scope]

    def _first_call(self, scope: tuple[str, ...]) -> tuple[str, ...]:
        """The scope of a module's first call."""
        found = _REPEATED.fullmatch(scope[-1]) if scope else None
        if found is None or scope in self._callers:
            return scope
        first, number = (*scope[:-1], found[1]), int(found[2][:9])
        previous = first if number == 1 else (*scope[:-1], f"{found[1]}_{number - 1}")
        repeats = first in self._scopes and previous in self._scopes and not self._owns(scope)
        return first if repeats else scope

    def _owns(self, scope: tuple[str, ...]) -> bool:
        """Whether parameters show that a module of exactly this name exists."""
        return any(_ends_with(owner, scope[-1]) for owner in self._parameters.get(scope, ()))

    def _learn(self, scope: tuple[str, ...]) -> None:
        """Take the path of a scope, and of those around it, from the parameters that it reads."""
        first = self._first_call(scope)
        owners = {o for o in self._parameters.get(scope, ()) if first and _ends_with(o, first[-1])}
        if len(owners) != 1:
            return
        path: str | None = owners.pop()
        for depth in range(len(first), 0, -1):
            if path is None:
                return
            self._paths.setdefault(first[:depth], path)
            path = _parent_path(path, first[:depth])


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith("." + name)


def _parent_path(path: str, scope: tuple[str, ...]) -> str | None:
    """The path of the calling module, by its name and the path of the one that it called."""
    if len(scope) < 2:
        return None
    caller, name = scope[-2], scope[-1]
    if name.startswith(caller + "."):
        return path[: len(path) - len(name) + len(caller)]
    outer = path.removesuffix("." + name)
    while outer and not _ends_with(outer, caller):
        outer = outer.rpartition(".")[0]
    return outer or None


def _from_operations(nodes: Sequence[Node]) -> Scopes:
    """The layers in TensorFlow's names of operations; the model's own name, in front of all, is left out."""
    parts = [_operation_scope(node) for node in nodes]
    known = [scope for scope in parts if scope]
    root = Counter(scope[0] for scope in known).most_common(1)
    common = root[0][0] if root and root[0][1] > len(known) / 2 else None
    chains = [_layer_chain(scope, common) for scope in parts]
    return Scopes("keras", list(chains), list(chains), {})


def _operation_scope(node: Node) -> tuple[str, ...] | None:
    name = _ADDED.sub("", node.outputs[0]) if node.outputs else ""
    if not name or len(name) > MAX_NAME_LENGTH or "/" not in name:
        return None
    parts = [part for part in name.split("/")[:-1] if part not in _WRAPPERS]
    return tuple(parts) if len(parts) <= MAX_DEPTH else None


def _layer_chain(scope: tuple[str, ...] | None, root: str | None) -> Chain | None:
    if scope is None:
        return None
    inner = scope[1:] if scope[:1] == (root,) else scope
    return tuple(".".join(inner[: depth + 1]) for depth in range(len(inner))) or None
