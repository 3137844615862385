"""What the service is held against: the uncut graph in onnxruntime, and nothing of ours."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort


class UncutGraph:
    """A file as it is, with tensors exposed beside its declared outputs; nothing is cut or renamed."""

    def __init__(self, path: Path, expose: Sequence[str], *, optimised: bool = False) -> None:
        proto = onnx.load(path)
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in expose)
        weights = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value for value in proto.graph.input if value.name not in weights]
        # Weights listed as inputs keep their values, but stop folding; the service takes them out too.
        del proto.graph.input[:]
        proto.graph.input.extend(inputs)
        proto.ir_version = max(proto.ir_version, 4)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.use_per_session_threads = False
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        self.expose = list(expose)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.expose, self._session.run(self.expose, dict(feeds)), strict=True))


def tensors_of(path: Path) -> list[str]:
    """Every tensor that a node of the file makes, constants included."""
    return [name for node in onnx.load(path).graph.node for name in node.output if name]
