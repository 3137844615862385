"""onnxruntime on the whole graph, unoptimized, with every tensor as an output."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from service.values import Array


class Uncut:
    """A file's graph, or a changed copy of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        self.outputs = [output.name for output in model.graph.output]
        self._names = [name for node in model.graph.node for name in node.output if name]
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # The process has one pool for all sessions, which the engine made.
        options.use_per_session_threads = False
        options.log_severity_level = 4
        self._session = ort.InferenceSession(
            exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Array) -> dict[str, Array]:
        """Every tensor that a node makes, for one image (1, C, H, W)."""
        return dict(zip(self._names, self._session.run(self._names, {self._input: x}), strict=True))


def read(path: Path) -> onnx.ModelProto:
    """A model with its weights."""
    return onnx.load(path)


def shapes(values: dict[str, Array]) -> dict[str, list[int]]:
    """By tensor."""
    return {name: list(value.shape) for name, value in values.items()}


def fingerprint(value: Array) -> str:
    """Of the bits of an array."""
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
