"""An ONNX file as it comes from outside: read, and checked before anything is made of it."""

import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto

from service.engine.extent import ModelLimits, all_tensors, check_extent
from service.engine.node_order import sort_nodes
from service.engine.weight_file import ExternalFiles, WeightFile, without_weights
from service.errors import ModelFailed

# Weights listed as graph inputs (IR 3 files) can be overridden by callers and so are never folded;
# from IR 4 on an initializer need not be an input.
IR_WITH_CONSTANT_WEIGHTS = 4
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """A checked file: `proto` without its large weights, which `weights` reads back.

    `digest` is the SHA-256 of the file and its `external` data, `folder` where the latter lies.
    """

    proto: ModelProto
    weights: WeightFile
    external: ExternalFiles
    folder: Path
    digest: str


def open_onnx(path: Path, limits: ModelLimits) -> OnnxFile:
    """Read and check one ONNX file with its external data.

    Raises:
        ModelFailed: not ONNX, a Git LFS pointer, truncated, without an opset, an ill-formed graph, over
            the limits, or external data that is missing or outside the file's folder.
    """
    content = _content(path, limits)
    light, places = without_weights(content, limits.model_nodes)
    proto = _parsed(light)
    check_extent(proto, limits)
    digest = hashlib.sha256(content)
    files = _external_files(proto, path.parent.resolve())
    # Looked at before they are read, so that no change escapes.
    external = ExternalFiles(files)
    _check_bytes(len(content) + sum(file.stat().st_size for file in files), limits)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    sort_nodes(proto.graph)
    _free_negative_axes(proto.graph)
    _strip_weight_inputs(proto)
    weights = WeightFile(path, places)
    return OnnxFile(proto, weights, external, path.parent.resolve(), digest.hexdigest())


def _check_bytes(size: int, limits: ModelLimits) -> None:
    if size > limits.model_bytes:
        raise ModelFailed(f"the model holds {size} bytes; max_model_bytes allows {limits.model_bytes}")


def _content(path: Path, limits: ModelLimits) -> bytes:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise ModelFailed(f"{path.name} is no file")
        _check_bytes(state.st_size, limits)
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
    for tensor in all_tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            file = wanted.setdefault(location, _external_file(location, folder))
            _check_place(tensor, entries, file)
    return [wanted[location] for location in sorted(wanted)]


def _external_file(location: str, folder: Path) -> Path:
    parts = PurePosixPath(location)
    if not location or parts.is_absolute() or ".." in parts.parts or "\\" in location:
        raise ModelFailed("external data must lie in the model's own folder")
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise ModelFailed(
            "external data is a link that leaves the model's folder, as in a hub's cache: copy the model "
            "with `cp -L`, or serve the file in the folder that holds the data"
        )
    if not file.is_file():
        raise ModelFailed(f"the external data file {parts.name!r} is missing")
    return file


def _check_place(tensor: TensorProto, entries: Mapping[str, str], file: Path) -> None:
    """ONNX stores offset and length as decimal text."""
    size = file.stat().st_size
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size - offset)))
    except ValueError as error:
        raise ModelFailed(f"the external data of {tensor.name!r} is ill-formed") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFailed(f"the external data of {tensor.name!r} lies beyond the file's end")


def _free_negative_axes(graph: GraphProto) -> None:
    """Make axes without a size of those that exporters write as -1, which ONNX does not define."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _strip_weight_inputs(proto: ModelProto) -> None:
    weights = {tensor.name for tensor in proto.graph.initializer}
    true_inputs = [value for value in proto.graph.input if value.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(true_inputs)
    proto.ir_version = max(proto.ir_version, IR_WITH_CONSTANT_WEIGHTS)
