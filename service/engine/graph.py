"""The ONNX file: read, checked, described at an input shape, and cut to what is asked.

The only module that imports `onnx`. Tensors keep their names and nodes their order; nothing is
simplified or renamed.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from service.engine.nodes import Network, Node
from service.errors import ModelFailed
from service.values import Array, TensorSpec

# Weights listed as graph inputs (IR 3 files) can be overridden by callers and so are never folded;
# from IR 4 on an initializer need not be an input.
IR_WITH_CONSTANT_WEIGHTS = 4
# Values of shapes, pads, scales and axes are looked at; weights are not.
SMALL_CONSTANT_ELEMENTS = 1024
LFS_POINTER = b"version https://git-lfs"


class Graph:
    """A model file that was read and checked; `cut` gives the part that computes some of its tensors."""

    def __init__(self, proto: ModelProto, folder: Path, digest: str) -> None:
        self._proto = proto
        self.folder = folder
        self.digest = digest
        self.nodes = _named(proto.graph.node)
        self.inputs = tuple(_spec(value) for value in proto.graph.input)
        self.outputs = tuple(value.name for value in proto.graph.output)
        self._initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in proto.graph.sparse_initializer}
        self._makers = {made: i for i, node in enumerate(self.nodes) for made in node.makes}
        self._constants = _small_constants(proto.graph)

    def stored(self, name: str) -> Array | None:
        """The values of an initializer or of a Constant node, read-only; external data is read anew.

        None for any other tensor, a sparse one, and where the bytes do not fit the shape.
        """
        if name in self._makers and self.nodes[self._makers[name]].op == "Constant":
            attribute = self._proto.graph.node[self._makers[name]].attribute[0]
            return _values(attribute.t) if attribute.HasField("t") else self._constants.get(name)
        return _values(self._initializers[name], self.folder) if name in self._initializers else None

    def weight_bytes_of(self, layers: Iterable[str]) -> int:
        """Bytes of the initializers that these tensors need, as stored."""
        reads = {name for i in self.needed(layers) for name in self.nodes[i].reads}
        return sum(_tensor_bytes(t) for name, t in self._initializers.items() if name in reads)

    @property
    def quantised(self) -> bool:
        """Whether the arithmetic depends on fusions around QuantizeLinear."""
        return any(node.op in ("QuantizeLinear", "DequantizeLinear") for node in self.nodes)

    def network(self, shapes: Mapping[str, Sequence[int]]) -> Network:
        """Describe the graph with its inputs at these shapes, as far as ONNX's inference knows."""
        tensors = _inferred(self._skeleton(shapes))
        return Network(self.nodes, self.inputs, self.outputs, tensors, self._constants)

    def needed(self, layers: Iterable[str]) -> list[int]:
        """Indices of the nodes that these tensors need, in the file's order."""
        chosen: set[int] = set()
        waiting = [name for name in layers if name in self._makers]
        while waiting:
            index = self._makers[waiting.pop()]
            if index not in chosen:
                chosen.add(index)
                waiting.extend(name for name in self.nodes[index].reads if name in self._makers)
        return sorted(chosen)

    def cut(self, layers: Sequence[str], *, free_batch: bool = False) -> bytes:
        """Serialise the subgraph that ends at `layers`, which become its outputs in this order.

        With `free_batch` the first dimension of each input is made dynamic.
        """
        part = self._empty()
        indices = self.needed(layers)
        part.graph.node.extend(self._proto.graph.node[i] for i in indices)
        reads = {name for i in indices for name in self.nodes[i].reads} | set(layers)
        part.graph.initializer.extend(t for n, t in self._initializers.items() if n in reads)
        part.graph.sparse_initializer.extend(t for n, t in self._sparse.items() if n in reads)
        part.graph.input.extend(value for value in self._proto.graph.input if value.name in reads)
        if free_batch:
            _free_batch(part.graph.input)
        part.graph.output.extend(ValueInfoProto(name=name) for name in layers)
        return _serialised(part)

    def exposed(self, shapes: Mapping[str, Sequence[int]]) -> bytes:
        """Serialise the whole graph at these input shapes, every tensor that a node makes as an output."""
        whole = self._empty()
        whole.graph.CopyFrom(self._proto.graph)
        del whole.graph.output[:], whole.graph.value_info[:]
        whole.graph.output.extend(ValueInfoProto(name=name) for name in self._makers)
        _fix_shapes(whole.graph.input, shapes)
        return _serialised(whole)

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
        for output in self._proto.graph.output:
            model.graph.output.append(ValueInfoProto(name=output.name))
        return model


def read(path: Path) -> Graph:
    """Read and check one ONNX file with its external data.

    Raises:
        ModelFailed: not ONNX, a Git LFS pointer, truncated, without an opset, an ill-formed graph,
            or external data that is missing or outside the file's folder.
    """
    content = _content(path)
    proto = _parsed(content)
    digest = hashlib.sha256(content)
    for file in _external_files(proto, path.parent.resolve()):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    _check_order(proto.graph)
    _strip_weight_inputs(proto)
    return Graph(proto, path.parent.resolve(), digest.hexdigest())


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFailed(f"{path.name} cannot be read") from error
    if not content:
        raise ModelFailed(f"{path.name} is empty")
    if content[4:8] == b"ORTM":
        raise ModelFailed(
            f"{path.name} is in onnxruntime's own format, whose graph cannot be cut: give the ONNX file"
        )
    if content.startswith(LFS_POINTER):
        raise ModelFailed(f"{path.name} is a Git LFS pointer, not the model: fetch it with `git lfs pull`")
    return content


def _parsed(content: bytes) -> ModelProto:
    try:
        proto: ModelProto = ModelProto.FromString(content)
    except DecodeError as error:
        raise ModelFailed("the file is not ONNX, or it is truncated") from error
    if not proto.graph.node:
        raise ModelFailed("the file is not ONNX: it holds no graph with nodes")
    if not proto.opset_import and not proto.functions:
        raise ModelFailed("the file imports no opset, so its operators have no meaning")
    return proto


def _external_files(proto: ModelProto, folder: Path) -> list[Path]:
    """The external data files, each once, in the order of their names; refused outside `folder`."""
    wanted: dict[str, Path] = {}
    for tensor in _all_tensors(proto.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            file = wanted.setdefault(location, _external_file(location, folder))
            _check_extent(tensor, entries, file)
    return [wanted[location] for location in sorted(wanted)]


def _external_file(location: str, folder: Path) -> Path:
    parts = PurePosixPath(location)
    if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location:
        raise ModelFailed("external data must lie in the model's own folder")
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise ModelFailed("external data is a link that leaves the model's folder")
    if not file.is_file():
        raise ModelFailed(f"the external data file {parts.name!r} is missing")
    return file


def _check_extent(tensor: TensorProto, entries: Mapping[str, str], file: Path) -> None:
    """ONNX stores offset and length as decimal text."""
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError as error:
        raise ModelFailed(f"the external data of {tensor.name!r} is ill-formed") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFailed(f"the external data of {tensor.name!r} lies beyond the file's end")


def _all_tensors(graph: GraphProto) -> Iterable[TensorProto]:
    """Every stored tensor, those in attributes and subgraphs included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in _subgraphs(attribute):
                yield from _all_tensors(inner)


def _subgraphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _check_order(graph: GraphProto) -> None:
    """Names are made once and before they are read, as the ONNX specification asks; so there is no cycle."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in _named(graph.node):
        for name in node.reads:
            if name not in known:
                raise ModelFailed(
                    f"node {node.name!r} reads {name!r} before any node made it: "
                    "the graph is cyclic, not in topological order, or incomplete"
                )
        for name in node.makes:
            if name in known:
                raise ModelFailed(f"the tensor {name!r} is made twice")
            known.add(name)
    for output in graph.output:
        if output.name not in known:
            raise ModelFailed(f"nothing makes the declared output {output.name!r}")


def _strip_weight_inputs(proto: ModelProto) -> None:
    weights = {tensor.name for tensor in proto.graph.initializer}
    true_inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(true_inputs)
    proto.ir_version = max(proto.ir_version, IR_WITH_CONSTANT_WEIGHTS)


def _named(nodes: Iterable[NodeProto]) -> tuple[Node, ...]:
    return tuple(
        Node(
            name=node.name or f"{node.op_type}_{i}",
            op=node.op_type,
            domain="" if node.domain == "ai.onnx" else node.domain,
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            attributes={a.name: _attribute(a) for a in node.attribute if not _is_graph(a)},
            captured=tuple(sorted(_captured(node))),
        )
        for i, node in enumerate(nodes)
    )


def _is_graph(attribute: AttributeProto) -> bool:
    return attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def _attribute(attribute: AttributeProto) -> Any:
    if attribute.type == AttributeProto.TENSOR:
        small = _elements(attribute.t.dims) <= SMALL_CONSTANT_ELEMENTS
        return _values(attribute.t) if small else None
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _captured(node: NodeProto) -> set[str]:
    """Names that the node's subgraphs read from outside."""
    found: set[str] = set()
    for attribute in node.attribute:
        for inner in _subgraphs(attribute):
            made = {value.name for value in inner.input} | {t.name for t in inner.initializer}
            made |= {name for child in inner.node for name in child.output}
            reads = {name for child in inner.node for name in child.input if name}
            reads |= {name for child in inner.node for name in _captured(child)}
            reads |= {value.name for value in inner.output}
            found |= reads - made
    return found


def _small_constants(graph: GraphProto) -> dict[str, Array]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    small = {n: t for n, t in tensors.items() if _elements(t.dims) <= SMALL_CONSTANT_ELEMENTS}
    values = {name: _values(tensor) for name, tensor in small.items()}
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


def _values(tensor: TensorProto, folder: Path | None = None) -> Array | None:
    """None where the tensor is stored outside of the file, without `folder`, or does not fit its shape."""
    if tensor.data_location == TensorProto.EXTERNAL and folder is None:
        return None
    try:
        return onnx.numpy_helper.to_array(tensor, str(folder or ""))
    except (ValueError, TypeError, OSError, onnx.checker.ValidationError):
        return None


def _elements(dims: Sequence[int]) -> int:
    return int(np.prod(dims, dtype=object)) if dims else 1


def _tensor_bytes(tensor: TensorProto) -> int:
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError:
        itemsize = 1
    return _elements(tensor.dims) * itemsize


def _spec(value: ValueInfoProto) -> TensorSpec:
    """Sequences and maps have the dtype "" and no shape."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return TensorSpec(value.name, "", None)
    shape = None
    if kind.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorSpec(value.name, _dtype_name(kind.elem_type), shape)


def _dtype_name(elem_type: int) -> str:
    if elem_type == TensorProto.STRING:
        return "str"
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
    except KeyError:
        return ""


def _inferred(model: ModelProto) -> dict[str, TensorSpec]:
    """What ONNX's shape inference finds; an operator that it does not know ends it there."""
    # Where it fails, the runtime's own inference fills what is missing.
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    specs = {value.name: _spec(value) for value in values if value.type.WhichOneof("value")}
    for tensor in model.graph.initializer:
        specs[tensor.name] = TensorSpec(tensor.name, _dtype_name(tensor.data_type), tuple(tensor.dims))
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
