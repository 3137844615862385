"""A network's graph: described at an input shape, and cut to what is asked.

Tensors keep their names and nodes their order; nothing is simplified or renamed.
"""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from service.engine.extent import MODEL_LIMITS, ModelLimits, dense, tensors_in
from service.engine.nodes import WIDENED_SUFFIX, Network
from service.engine.onnx_file import OnnxFile, open_onnx
from service.engine.protos import (
    dtype_name,
    element_type,
    named,
    small_constants,
    spec_of,
    subgraphs,
    tensor_bytes,
    values_of,
)
from service.errors import ModelFailed
from service.values import Array, TensorSpec

INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


class Graph:
    """A model file that was read and checked; `cut` gives the part that computes some of its tensors."""

    def __init__(self, file: OnnxFile) -> None:
        self._proto = file.proto
        self._weights = file.weights
        self._external = file.external
        self.folder = file.folder
        self.digest = file.digest
        graph = file.proto.graph
        self.nodes = named(graph.node)
        self.inputs = tuple(spec_of(value) for value in graph.input)
        self.outputs = tuple(value.name for value in graph.output)
        self.declared = {value.name: spec_of(value) for value in graph.output}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._makers = {made: i for i, node in enumerate(self.nodes) for made in node.makes}
        self._constants = small_constants(graph)
        self._held = _held_by_name(graph)
        self._inside = _held_inside(file.proto)
        # The indices of nodes that hold subgraphs, or call functions that do.
        self.branching = frozenset(_branching(file.proto))

    def stored(self, name: str) -> Array | None:
        """The values of an initializer or of a Constant node, read-only; large ones are read anew.

        None for any other tensor, a sparse one, and where the bytes do not fit the shape.

        Raises:
            ModelFailed: the file, or one with its external data, was changed after it was loaded.
        """
        self._external.check()
        if name in self._makers and self.nodes[self._makers[name]].op == "Constant":
            attribute = self._proto.graph.node[self._makers[name]].attribute[0]
            return values_of(attribute.t) if attribute.HasField("t") else self._constants.get(name)
        return values_of(self._whole(name), self.folder) if name in self._initializers else None

    def weight_bytes(self, nodes: Iterable[int]) -> int:
        """Bytes of the weights that these nodes read, as stored, or hold in subgraphs and functions."""
        chosen = tuple(nodes)
        reads = {name for i in chosen for name in self.nodes[i].reads if name in self._held}
        return sum(self._held[name] for name in reads) + sum(self._inside.get(i, 0) for i in chosen)

    def network(self, shapes: Mapping[str, Sequence[int]]) -> Network:
        """Describe the graph with its inputs at these shapes, as far as ONNX's inference knows."""
        tensors = _inferred(self._skeleton(shapes))
        producer = self._proto.producer_name
        return Network(self.nodes, self.inputs, self.outputs, tensors, self._constants, producer=producer)

    def needed(self, layers: Iterable[str], given: Collection[str] = ()) -> list[int]:
        """Indices of the nodes that these tensors need beside what is given, in the file's order."""
        chosen: set[int] = set()
        waiting = [name for name in layers if name in self._makers]
        while waiting:
            index = self._makers[waiting.pop()]
            if index not in chosen:
                chosen.add(index)
                reads = self.nodes[index].reads
                waiting.extend(name for name in reads if name in self._makers and name not in given)
        return sorted(chosen)

    def cut(
        self,
        layers: Sequence[str],
        given: Sequence[TensorSpec] = (),
        *,
        free_batch: bool = False,
        widen: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        """Serialise the subgraph from `given` to `layers`, which become its outputs in this order.

        What is given and made by a node becomes an input of its dtype and shape. With `free_batch` the first
        dimension of each of the graph's own inputs is made dynamic. Layers in `widen` are cast to these
        dtypes and have WIDENED_SUFFIX behind their names. External data is not part of it:
        who compiles it reads that from `folder`.

        Raises:
            ModelFailed: the file, or one with its external data, was changed after it was loaded; or the
                part holds 2 GB or more.
        """
        self._external.check()
        part = self._empty()
        indices = self.needed(layers, {spec.name for spec in given})
        part.graph.node.extend(self._proto.graph.node[i] for i in indices)
        reads = {name for i in indices for name in self.nodes[i].reads} | set(layers)
        part.graph.initializer.extend(self._whole(name) for name in self._initializers if name in reads)
        part.graph.sparse_initializer.extend(t for n, t in self._sparse.items() if n in reads)
        part.graph.input.extend(value for value in self._proto.graph.input if value.name in reads)
        if free_batch:
            _free_batch(part.graph.input)
        part.graph.input.extend(_input(spec) for spec in given if spec.name in self._makers)
        for name in layers:
            part.graph.output.append(ValueInfoProto(name=name + WIDENED_SUFFIX if name in widen else name))
        part.graph.node.extend(_widening(name, widen[name]) for name in layers if name in widen)
        return _serialised(part)

    def exposed(self, shapes: Mapping[str, Sequence[int]]) -> bytes:
        """Serialise the graph without its large weights, every tensor that a node makes as an output."""
        whole = self._skeleton(shapes)
        del whole.graph.output[:]
        whole.graph.output.extend(ValueInfoProto(name=name) for name in self._makers)
        return _serialised(whole)

    def _whole(self, name: str) -> TensorProto:
        """An initializer with its bytes, which may lie in the file."""
        tensor: TensorProto = self._initializers[name]
        if name not in self._weights:
            return tensor
        whole = TensorProto()
        whole.CopyFrom(tensor)
        whole.raw_data = self._weights.read(name)
        return whole

    def _empty(self) -> ModelProto:
        model = ModelProto(ir_version=self._proto.ir_version, producer_name="featuremaps")
        model.opset_import.extend(self._proto.opset_import)
        model.functions.extend(self._proto.functions)
        model.graph.name = self._proto.graph.name or "graph"
        return model

    def _skeleton(self, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
        """The graph without its weights' bytes: large initializers stand as inputs with their shapes."""
        model = self._empty()
        model.graph.node.extend(self._proto.graph.node)
        model.graph.input.extend(self._proto.graph.input)
        _fix_shapes(model.graph.input, shapes)
        for name, tensor in self._initializers.items():
            if name in self._constants:
                model.graph.initializer.append(tensor)
            else:
                spec = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
                model.graph.input.append(spec)
        for tensor in dense(self._proto.graph):
            spec = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            model.graph.input.append(spec)
        for output in self._proto.graph.output:
            model.graph.output.append(ValueInfoProto(name=output.name))
        return model


def _widening(name: str, dtype: str) -> NodeProto:
    node: NodeProto = onnx.helper.make_node("Cast", [name], [name + WIDENED_SUFFIX], to=element_type(dtype))
    return node


def _held_by_name(graph: GraphProto) -> Mapping[str, int]:
    """Bytes of what is stored under a name: initializers, sparse ones as they are run, and constants."""
    held = {tensor.name: tensor_bytes(tensor) for tensor in (*graph.initializer, *dense(graph))}
    constants = (node for node in graph.node if node.op_type == "Constant")
    return held | {name: _bytes_in([node]) for node in constants for name in node.output}


def _held_inside(proto: ModelProto) -> Mapping[int, int]:
    """Bytes of what nodes hold themselves, by their index: in subgraphs, and in the functions they call."""
    functions = {(f.domain, f.name): _bytes_in(f.node) for f in proto.functions}
    inside = {
        i: _bytes_in([node]) + functions.get((node.domain, node.op_type), 0)
        for i, node in enumerate(proto.graph.node)
        if node.op_type != "Constant"
    }
    return {i: size for i, size in inside.items() if size}


def _branching(proto: ModelProto) -> Iterable[int]:
    callers: dict[tuple[str, str], set[tuple[str, str]]] = {}
    found = set()
    for function in proto.functions:
        name = function.domain, function.name
        for node in function.node:
            callers.setdefault((node.domain, node.op_type), set()).add(name)
            if _holds_graphs(node):
                found.add(name)
    waiting = list(found)
    while waiting:
        new = callers.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    nodes = enumerate(proto.graph.node)
    return (i for i, node in nodes if _holds_graphs(node) or (node.domain, node.op_type) in found)


def _holds_graphs(node: NodeProto) -> bool:
    return any(True for attribute in node.attribute for _ in subgraphs(attribute))


def _bytes_in(nodes: Iterable[NodeProto]) -> int:
    return sum(map(tensor_bytes, tensors_in(nodes)))


def read(path: Path, limits: ModelLimits = MODEL_LIMITS, digest: str | None = None) -> Graph:
    """Read and check one ONNX file with its external data; `digest` is that of the file that is expected.

    Raises:
        ModelFailed: not ONNX, a Git LFS pointer, truncated, without an opset, an ill-formed graph, over
            the limits, external data that is missing or outside the file's folder, or another file.
    """
    file = open_onnx(path, limits)
    if digest not in (None, file.digest):
        raise ModelFailed(f"{path.name} was changed after it had been checked")
    return Graph(file)


def _input(spec: TensorSpec) -> ValueInfoProto:
    dtype = element_type(spec.dtype)
    value: ValueInfoProto = onnx.helper.make_tensor_value_info(spec.name, dtype, spec.shape)
    return value


def _inferred(model: ModelProto) -> dict[str, TensorSpec]:
    """What ONNX's shape inference finds; an operator that it does not know ends it there."""
    # Where it fails, the runtime's own inference fills what is missing.
    with contextlib.suppress(*INFERENCE_ERRORS):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    specs = {value.name: spec_of(value) for value in values if value.type.WhichOneof("value")}
    for tensor in model.graph.initializer:
        specs[tensor.name] = TensorSpec(tensor.name, dtype_name(tensor.data_type), tuple(tensor.dims))
    return specs


def _fix_shapes(inputs: Iterable[ValueInfoProto], shapes: Mapping[str, Sequence[int]]) -> None:
    for value in inputs:
        if value.name in shapes:
            kind = value.type.tensor_type
            kind.ClearField("shape")
            for size in shapes[value.name]:
                kind.shape.dim.add(dim_value=size)


def _free_batch(inputs: Iterable[ValueInfoProto]) -> None:
    for value in inputs:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _serialised(model: ModelProto) -> bytes:
    try:
        return bytes(model.SerializeToString())
    except (ValueError, RuntimeError) as error:
        raise ModelFailed(
            "the model holds 2 GB or more in one file: store its weights as external data"
        ) from error
