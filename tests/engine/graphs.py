"""Small graphs built with onnx.helper, and what onnxruntime makes of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from service.engine.graph import Graph, read
from service.engine.nodes import Network
from service.engine.onnx_file import OnnxFile
from service.engine.weight_file import ExternalFiles, WeightFile
from service.values import Array, Layer, TensorSpec

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def words(text: str) -> list[str]:
    return text.split()


GOOD = words(
    "cifar10_classifier_winml deeplabv3_mnv2_257_voc_nhwc mnist-8 squeezenet1.1_qdq_int8 "
    "squeezenet1.1_upcast_fp32 style_candy superres_core_224 tbefn_240x320 ultraface_RFB-320 yolox_nano "
    "yunet_120x160"
)
LIGHT_NAMES = words(
    "bvlc_alexnet densenet121 inception_v1 inception_v2 resnet50 shufflenet squeezenet vgg19 zfnet512"
)


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{outputs[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    outputs: Sequence[str],
    constants: Mapping[str, ArrayLike] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model with one float32 input `x`."""
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", [x], ends, stored)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def network(proto: onnx.ModelProto, shape: Sequence[int] | None = None) -> Network:
    graph = graph_of(proto)
    return graph.network({"x": shape} if shape else {})


def by_name(rows: Sequence[Layer]) -> dict[str, Layer]:
    return {row.name: row for row in rows}


def session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(proto: onnx.ModelProto, x: Array) -> Array:
    """The first output."""
    return session(proto.SerializeToString()).run(None, {"x": x})[0]


@cache
def light(name: str) -> Network:
    return read(LIGHT / f"light_{name}.onnx").network({})


def good_graph(name: str) -> Graph:
    path = DATA / "models" / "good" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is missing: set TEST_DATA to the folder of test data")
    return read(path)


def graph_of(proto: onnx.ModelProto) -> Graph:
    """A graph that never was a file, nor checked."""
    return Graph(OnnxFile(proto, WeightFile(Path(os.devnull), {}), ExternalFiles(()), Path(), ""))


def every_tensor(graph: Graph) -> bytes:
    """The whole graph, every tensor that a node makes as an output."""
    return graph.cut([name for item in graph.nodes for name in item.makes])


@cache
def actual(name: str) -> dict[str, TensorSpec]:
    """What every tensor that a node makes really is, by a run on zeros with optimisation off."""
    graph = good_graph(name)
    runner = session(every_tensor(graph))
    zeros = {spec.name: np.zeros(_shapes(graph)[spec.name], spec.dtype) for spec in graph.inputs}
    names = [output.name for output in runner.get_outputs()]
    values = runner.run(names, zeros)
    return {n: TensorSpec(n, v.dtype.name, v.shape) for n, v in zip(names, values, strict=True)}


@cache
def good(name: str) -> Network:
    """At one image; what ONNX's inference leaves open is filled from a run."""
    graph = good_graph(name)
    found = graph.network(_shapes(graph))
    makes = [made for item in found.nodes for made in item.makes]
    missing = [n for n in makes if (s := found.tensors.get(n)) is None or not s.shape or None in s.shape]
    filled = {n: actual(name)[n] for n in missing if n in actual(name)} if missing else {}
    return replace(found, tensors={**found.tensors, **filled})


def _shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {spec.name: tuple(size or 1 for size in spec.shape or ()) for spec in graph.inputs}
