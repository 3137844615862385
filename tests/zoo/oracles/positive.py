"""A copy of a graph in which nothing hides what an input pixel reaches.

Weights are positive and everything that is added is zero, so that an input of zeros gives zeros: a change
neither cancels nor drowns in the rounding of a larger value, and no ReLU blocks it. What a cell can depend
on is the same as in the original.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from service.values import Array

# By operator, the inputs that are added and those that scale; all other weights are multiplied.
ADDED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "LayerNormalization"), (2,)),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), (2,)),
    "BatchNormalization": (2, 3),
    **dict.fromkeys(("Add", "Sub"), (0, 1)),
}
SCALES = {
    "BatchNormalization": (1, 4),
    **dict.fromkeys(("LayerNormalization", "InstanceNormalization", "GroupNormalization"), (1,)),
}
MULTIPLIED = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "PRelu"), (1,)),
    **dict.fromkeys(("MatMul", "Mul"), (0, 1)),
}
PASSED_ON = {"Identity", "Transpose", "Reshape", "Cast", "Unsqueeze", "Squeeze", "Expand"}


def positive(model: onnx.ModelProto) -> onnx.ModelProto:
    """The copy; scalars, and weights that nothing here knows, stay."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    roles = dict(_roles(copy.graph))
    random = np.random.default_rng(0)
    for stored in copy.graph.initializer:
        value = numpy_helper.to_array(stored)
        if value.size > 1 and value.dtype == np.float32 and stored.name in roles:
            stored.CopyFrom(
                numpy_helper.from_array(_replaced(value, roles[stored.name], random), stored.name)
            )
    return copy


def _roles(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """By initializer, what it is used for; those of operators not listed are left out."""
    stored = {item.name: item.name for item in graph.initializer}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name not in stored:
                continue
            if node.op_type in PASSED_ON and place == 0:
                stored[node.output[0]] = stored[name]
            elif place in ADDED.get(node.op_type, ()):
                yield stored[name], "added"
            elif place in SCALES.get(node.op_type, ()):
                yield stored[name], "scale"
            elif place in MULTIPLIED.get(node.op_type, ()):
                yield stored[name], "multiplied"


def _replaced(value: Array, role: str, random: np.random.Generator) -> Array:
    if role == "added":
        return np.zeros_like(value)
    if role == "scale":
        return np.ones_like(value)
    drawn = random.uniform(0.5, 1.5, value.shape)
    return (drawn * _mean_weight(value.shape)).astype(np.float32)


def _mean_weight(shape: tuple[int, ...]) -> float:
    """Such that values stay within float32 in the middle of a field and at its edge, over many layers."""
    if len(shape) < 2 or shape.count(1) >= len(shape) - 1:
        return 1.0
    sides = np.prod(shape[2:]) if len(shape) == 4 else 1
    inputs = shape[1] if len(shape) == 4 else max(shape)
    return float(1 / (inputs * np.sqrt(sides)))
