"""What the images of a batch may decide together, which a few examples of a batch need not show."""

import math
from collections.abc import Container

from service.engine.layers.axes import find_roles
from service.engine.layers.parts import Roles
from service.engine.layers.shape_values import BATCH
from service.engine.nodes import OF_SIZES, Network
from service.values import TensorSpec

DECIDING = ("bool", "int32", "int64")


def decided_together(network: Network, branching: Container[int]) -> frozenset[str]:
    """Every tensor that depends on a decision which one image of a batch would take for all.

    Such is a branch or a loop, whose nodes are `branching`; and a truth, an index or a single number
    that depends on the input's values and has no batch axis: a mean over all of it, compared with zero.
    """
    roles = find_roles(network)
    of_values, decided = {spec.name for spec in network.inputs}, set[str]()
    for index, node in enumerate(network.nodes):
        if node.op in OF_SIZES or of_values.isdisjoint(node.reads):
            continue
        of_values.update(node.makes)
        decides = any(_may_decide(network.tensors.get(name), roles.get(name)) for name in node.makes)
        if decides or index in branching or not decided.isdisjoint(node.reads):
            decided.update(node.makes)
    return frozenset(decided)


def _may_decide(spec: TensorSpec | None, roles: Roles | None) -> bool:
    if roles and roles[0] == BATCH:
        return False
    if spec is None or spec.dtype in DECIDING:
        return True
    return spec.shape is not None and math.prod(size or 2 for size in spec.shape) == 1
