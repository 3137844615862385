"""From ONNX's messages to plain Python: nodes, values, specs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from service.engine.nodes import Node
from service.engine.origins import origin_of
from service.values import Array, TensorSpec

# Values of shapes, pads, scales and axes are looked at; weights are not.
SMALL_CONSTANT_ELEMENTS = 1024


def named(nodes: Iterable[NodeProto]) -> tuple[Node, ...]:
    """The nodes in plain Python; one without a name is called by its operator and position."""
    return tuple(
        Node(
            name=node.name or f"{node.op_type}_{i}",
            op=node.op_type,
            domain="" if node.domain == "ai.onnx" else node.domain,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={a.name: _attribute(a) for a in node.attribute if not _is_graph(a)},
            captured=tuple(sorted(_captured(node))),
            origin=origin_of({entry.key: entry.value for entry in node.metadata_props}),
        )
        for i, node in enumerate(nodes)
    )


def _is_graph(attribute: AttributeProto) -> bool:
    return attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _attribute(attribute: AttributeProto) -> Any:
    if attribute.type == AttributeProto.TENSOR:
        small = _elements(attribute.t.dims) <= SMALL_CONSTANT_ELEMENTS
        return values_of(attribute.t) if small else None
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _captured(node: NodeProto) -> set[str]:
    """Names that the node's subgraphs read from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for inner in subgraphs(attribute):
            made = {value.name for value in inner.input} | {t.name for t in inner.initializer}
            made |= {t.values.name for t in inner.sparse_initializer}
            made |= {name for child in inner.node for name in child.output}
            reads = {name for child in inner.node for name in child.input if name}
            reads |= {name for child in inner.node for name in _captured(child)}
            reads |= {value.name for value in inner.output}
            found |= reads - made
    return found


def small_constants(graph: GraphProto) -> dict[str, Array]:
    """The values of small initializers and of Constant nodes."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    small = {n: t for n, t in tensors.items() if _elements(t.dims) <= SMALL_CONSTANT_ELEMENTS}
    values = {name: values_of(tensor) for name, tensor in small.items()}
    for node in graph.node:
        if node.op_type == "Constant" and node.output and node.attribute:
            values[node.output[0]] = _constant(node.attribute[0])
    return {name: value for name, value in values.items() if value is not None}


def _constant(attribute: AttributeProto) -> Array | None:
    """The value of a Constant node, which has one attribute."""
    value = _attribute(attribute)
    if value is None or attribute.type in (AttributeProto.TENSOR, AttributeProto.SPARSE_TENSOR):
        return value if isinstance(value, np.ndarray) else None
    return np.asarray(value)


def values_of(tensor: TensorProto, folder: Path | None = None) -> Array | None:
    """None where the tensor is stored outside of the file, without `folder`, or does not fit its shape."""
    if tensor.data_location == TensorProto.EXTERNAL and folder is None:
        return None
    try:
        return onnx.numpy_helper.to_array(tensor, str(folder or ""))
    except (ValueError, TypeError, OSError, onnx.checker.ValidationError):
        return None


def _elements(dims: Sequence[int]) -> int:
    return int(np.prod(dims, dtype=object)) if dims else 1


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, wherever they lie."""
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        itemsize = 1
    return _elements(tensor.dims) * itemsize


def spec_of(value: ValueInfoProto) -> TensorSpec:
    """Sequences and maps have the dtype "" and no shape."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, "", None)
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorSpec(value.name, dtype_name(kind.elem_type), shape)


def element_type(dtype: str) -> int:
    """The number of a dtype by its name, 0 for one that ONNX does not have."""
    return next((number for number in TensorProto.DataType.values() if dtype_name(number) == dtype), 0)


def dtype_name(elem_type: int) -> str:
    """numpy's name of an ONNX element type, "" for one that numpy does not have."""
    if elem_type == TensorProto.STRING:
        return "str"
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
    except KeyError:
        return ""


def subgraphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    """The graphs that an attribute holds: bodies of If, Loop and Scan."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs
