"""How much a model is made of: bounded before anything is made of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from service.engine.protos import subgraphs, tensor_bytes
from service.errors import ModelFailed

# Those that onnxruntime itself has; operators of any other come from libraries, which are never loaded.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


@dataclass(frozen=True)
class ModelLimits:
    """What a model may be made of, external data included, and what checking it may take."""

    model_bytes: int = 2 << 30
    model_nodes: int = 100_000
    check_seconds: float = 60.0
    check_memory_bytes: int = 4 << 30


MODEL_LIMITS = ModelLimits()


def check_extent(proto: ModelProto, limits: ModelLimits) -> None:
    """Count nodes and stored tensors, those of subgraphs and functions too, and what the tensors declare.

    Raises:
        ModelFailed: more than the limits allow, or an operator of a domain that is not known.
    """
    local = {(function.domain, function.name) for function in proto.functions}
    for count, node in enumerate(_all_nodes(proto), 1):
        if count > limits.model_nodes:
            raise ModelFailed(f"the graph has more nodes than max_model_nodes allows, {limits.model_nodes}")
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in local:
            raise ModelFailed(
                f"the graph uses an operator that onnxruntime does not have: {node.op_type[:100]!r} of the "
                f"domain {node.domain[:100]!r}; libraries of operators are not loaded"
            )
    _check_tensors((*all_tensors(proto), *dense(proto.graph)), limits)


def all_tensors(proto: ModelProto) -> Iterable[TensorProto]:
    """Every stored tensor, those in attributes, subgraphs and functions included."""
    yield from _tensors_of(proto.graph)
    for function in proto.functions:
        yield from tensors_in(function.node)


def _check_tensors(tensors: Iterable[TensorProto], limits: ModelLimits) -> None:
    declared = 0
    for count, tensor in enumerate(tensors, 1):
        name = tensor.name[:100]
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFailed(f"the tensor {name!r} declares a negative dimension")
        if count > limits.model_nodes:
            raise ModelFailed(f"more tensors are stored than max_model_nodes allows, {limits.model_nodes}")
        declared += tensor_bytes(tensor)
        if declared > limits.model_bytes:
            raise ModelFailed(
                f"the stored tensors up to {name!r} declare {declared} bytes; max_model_bytes allows "
                f"{limits.model_bytes}"
            )


def dense(graph: GraphProto) -> Iterable[TensorProto]:
    """The runtime makes dense tensors of sparse ones, so what counts is their whole shape."""
    for sparse in graph.sparse_initializer:
        yield TensorProto(name=sparse.values.name, data_type=sparse.values.data_type, dims=sparse.dims)


def _tensors_of(graph: GraphProto) -> Iterable[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from tensors_in(graph.node)


def tensors_in(nodes: Iterable[NodeProto]) -> Iterable[TensorProto]:
    """The tensors that nodes hold in their attributes, subgraphs included."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in subgraphs(attribute):
                yield from _tensors_of(inner)


def _all_nodes(proto: ModelProto) -> Iterable[NodeProto]:
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        yield from _with_inner(nodes)


def _with_inner(nodes: Iterable[NodeProto]) -> Iterable[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in subgraphs(attribute):
                yield from _with_inner(inner.node)
