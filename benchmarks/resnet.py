"""ResNet-50 with random weights: the onnx package's own graph, its constant weights replaced."""

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

INPUT = "gpu_0/data_0"


def random_resnet50(path: Path) -> Path:
    """Write it once; the same seed gives the same file."""
    if path.exists():
        return path
    model = _light_graph()
    rng = np.random.default_rng(0)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            shape = constants[node.input[0]]
            model.graph.initializer.append(_weight(node.output[0], shape, rng))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def relus(path: Path) -> list[str]:
    """The names of all ReLUs, in graph order."""
    return [node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Relu"]


def _light_graph() -> ModelProto:
    return onnx.load(Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx")


def _weight(name: str, shape: np.ndarray, rng: np.random.Generator) -> onnx.TensorProto:
    """He's initialisation for kernels; vectors near one, so that variances and scales stay positive."""
    if len(shape) > 1:
        fan_in = int(np.prod(shape[1:]))
        values = rng.normal(0, np.sqrt(2 / fan_in), shape)
    else:
        values = rng.uniform(0.5, 1.0, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)
