"""Which tensors' shapes depend on the inputs' values, such as how many boxes a detector finds."""

from collections.abc import Container

from service.engine.layers.operators import names
from service.engine.nodes import OF_SIZES, Network, Node

# How much these make depends on what they read.
SELECTING = names(
    "NonZero NonMaxSuppression Unique Compress StringSplit SequenceAt SplitToSequence ConcatFromSequence"
)
# Inputs whose values decide the output's shape, from this one on.
SHAPING = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Pad", "Slice", "Resize", "Upsample", "TopK", "OneHot"), 1),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Split", "CenterCropPad", "ReduceMean", "ReduceSum"), 1),
    **dict.fromkeys(("ConstantOfShape", "Range", "RandomUniform", "EyeLike"), 0),
}


def variable_shapes(network: Network, branching: Container[int]) -> frozenset[str]:
    """The tensors without a complete shape for which the inputs' values are to blame.

    `branching` are the indices of nodes with subgraphs, whose outputs may take a shape from any branch.
    """
    of_values, variable = {spec.name for spec in network.inputs}, set[str]()
    for index, node in enumerate(network.nodes):
        makes = [name for name in node.makes if _is_incomplete(network, name)]
        if node.op in OF_SIZES and node.domain == "":
            if node.inputs[0] in variable:
                of_values.update(node.makes)
            continue
        if not of_values.isdisjoint(node.reads):
            of_values.update(node.makes)
            if index in branching or _is_shaped_by_values(node, of_values):
                variable.update(makes)
        if not variable.isdisjoint(node.reads):
            variable.update(makes)
    return frozenset(variable)


def _is_shaped_by_values(node: Node, of_values: Container[str]) -> bool:
    if node.op in SELECTING:
        return True
    first = SHAPING.get(node.op)
    return first is not None and any(name in of_values for name in node.inputs[first:])


def _is_incomplete(network: Network, name: str) -> bool:
    shape = network.shape(name)
    return shape is None or None in shape
