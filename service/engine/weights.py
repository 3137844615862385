"""The values of weights: what the file stores, and what short chains of operators make of it.

Only operators with one certain meaning are followed; whatever else computes a weight leaves it unknown.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from service.engine.graph import Graph
from service.engine.layers.operators import KNOWN_DOMAINS
from service.engine.nodes import Node
from service.values import Array

# Cast, QuantizeLinear, DequantizeLinear, Transpose, Reshape, Identity: no exporter needs more.
LONGEST_CHAIN = 6
# Numbers of `TensorProto.DataType`.
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}

Inputs = Sequence[Array | None]
Rule = Callable[[Node, Inputs], Array | None]


def weight(graph: Graph, name: str) -> Array | None:
    """A tensor that depends on no input, in the dtype and shape in which the network reads it; read-only.

    None where the file does not store it, or more than a short chain of operators makes it.
    """
    makers = {made: node for node in graph.nodes for made in node.makes[:1]}
    return _value(graph, makers, name, LONGEST_CHAIN)


def floats(values: Array) -> Array:
    """Floating point that every client knows: float16, float32 and float64 as they are, others as float32."""
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def dequantised(values: Array, scale: Array, zero_point: Array | None = None, axis: int = 1) -> Array:
    """`(values - zero_point) * scale` as float32; scale and zero point are numbers, or vectors along `axis`.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    """
    offset = 0 if zero_point is None else _along(zero_point.astype(np.float64), values, axis)
    centred = (values.astype(np.float64) - offset).astype(np.float32)
    return np.asarray(centred * _along(scale.astype(np.float32), values, axis), np.float32)


def _value(graph: Graph, makers: Mapping[str, Node], name: str, steps: int) -> Array | None:
    stored, node = graph.stored(name), makers.get(name)
    if stored is not None or node is None or steps == 0:
        return stored
    if node.op not in RULES or node.domain not in KNOWN_DOMAINS:
        return None
    inputs = [_value(graph, makers, n, steps - 1) if n else None for n in node.inputs]
    if any(value is None for value, n in zip(inputs, node.inputs, strict=True) if n):
        return None
    try:
        return RULES[node.op](node, inputs)
    except (ValueError, LookupError, ArithmeticError):
        # The runtime checks only what the outputs need; an ill-formed rest may lie in the file.
        return None


def _along(parameter: Array, values: Array, axis: int) -> Array:
    """A parameter in the shape that broadcasts it along one axis of the values."""
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)])


def _input(inputs: Inputs, index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


def _same(node: Node, inputs: Inputs) -> Array | None:
    return inputs[0]


def _cast(node: Node, inputs: Inputs) -> Array | None:
    target = FLOATS.get(node.attributes.get("to", 0))
    return None if inputs[0] is None or target is None else inputs[0].astype(target)


def _transposed(node: Node, inputs: Inputs) -> Array | None:
    return None if inputs[0] is None else inputs[0].transpose(node.attributes.get("perm"))


def _reshaped(node: Node, inputs: Inputs) -> Array | None:
    """A 0 keeps the size that stands at its place: https://onnx.ai/onnx/operators/onnx__Reshape.html."""
    data, target = inputs[0], _input(inputs, 1)
    if data is None or target is None or node.attributes.get("allowzero"):
        return None
    return data.reshape([data.shape[i] if size == 0 else int(size) for i, size in enumerate(target)])


def _dequantised(node: Node, inputs: Inputs) -> Array | None:
    values, scale = inputs[0], inputs[1]
    if values is None or scale is None or node.attributes.get("block_size"):
        return None
    return dequantised(values, scale, _input(inputs, 2), node.attributes.get("axis", 1))


def _quantised(node: Node, inputs: Inputs) -> Array | None:
    """Exporters that train quantised networks store floats and quantise them in the graph.

    https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
    """
    values, scale, zero_point = inputs[0], inputs[1], _input(inputs, 2)
    if values is None or scale is None or zero_point is None or node.attributes.get("block_size"):
        return None
    if zero_point.dtype.kind not in "iu":
        return None
    axis, limits = node.attributes.get("axis", 1), np.iinfo(zero_point.dtype)
    offset = _along(zero_point.astype(np.float64), values, axis)
    levels = np.rint(values / _along(scale, values, axis)) + offset
    return np.asarray(np.clip(levels, limits.min, limits.max).astype(zero_point.dtype))


RULES: dict[str, Rule] = {
    "Identity": _same,
    "Cast": _cast,
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "DequantizeLinear": _dequantised,
    "QuantizeLinear": _quantised,
}
