"""The order of a graph's nodes: each after those that make what it reads, as onnxruntime sorts them too."""

import heapq
from collections.abc import Collection, Mapping, Sequence

from onnx import GraphProto

from service.engine.nodes import Node
from service.engine.protos import named
from service.errors import ModelFailed

NODES_SHOWN = 6


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes into topological order in place; a graph that is in order stays as it is.

    Of several nodes that could come next, the first of the file does.

    Raises:
        ModelFailed: a tensor that a node or an output reads is missing, one is made twice, or there is a
            cycle; the message names it.
    """
    nodes, stored = named(graph.node), _stored(graph)
    makers = _makers(nodes, stored)
    for node in nodes:
        for name in node.reads:
            if name not in makers and name not in stored:
                raise ModelFailed(f"node {node.name!r} reads {name!r}, which nothing in the graph makes")
    for output in graph.output:
        if output.name not in makers and output.name not in stored:
            raise ModelFailed(f"nothing makes the declared output {output.name!r}")
    order = _order(nodes, makers)
    if order != sorted(order):
        chosen = [graph.node[i] for i in order]
        del graph.node[:]
        graph.node.extend(chosen)


def _stored(graph: GraphProto) -> Collection[str]:
    names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    return names | {tensor.values.name for tensor in graph.sparse_initializer}


def _makers(nodes: Sequence[Node], stored: Collection[str]) -> Mapping[str, int]:
    makers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.makes:
            if name in makers or name in stored:
                raise ModelFailed(f"the tensor {name!r} is made twice")
            makers[name] = index
    return makers


def _order(nodes: Sequence[Node], makers: Mapping[str, int]) -> list[int]:
    """Kahn's algorithm (https://doi.org/10.1145/368996.369025) with the file's order between equals."""
    needs = [{makers[name] for name in node.reads if name in makers} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for index, needed in enumerate(needs):
        for maker in needed:
            readers[maker].append(index)
    missing = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(missing) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise ModelFailed(f"the graph has a cycle: {_cycle(nodes, needs, set(order))}")
    return order


def _cycle(nodes: Sequence[Node], needs: Sequence[Collection[int]], sorted_: Collection[int]) -> str:
    """Walk back among the nodes that could not be sorted until one comes again."""
    index = next(i for i in range(len(nodes)) if i not in sorted_)
    walked: list[int] = []
    while index not in walked:
        walked.append(index)
        index = next(i for i in needs[index] if i not in sorted_)
    cycle = [nodes[i].name for i in reversed(walked[walked.index(index) :])]
    shown = ", ".join(map(repr, cycle[:NODES_SHOWN]))
    return shown + (f" and {len(cycle) - NODES_SHOWN} more nodes" if len(cycle) > NODES_SHOWN else "")
