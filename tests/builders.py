"""Small ONNX models and pictures made in code, for tests that must run anywhere."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

FLOAT = TensorProto.FLOAT
T = TypeVar("T")


def known(value: T | None) -> T:
    """The value, which a test expects to be there."""
    assert value is not None
    return value


def weight(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng([seed, *name.encode()]).normal(0, 0.3, shape)
    return numpy_helper.from_array(values.astype(np.float32), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    weights: Sequence[onnx.TensorProto] = (),
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, list(shape)) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def small_cnn(batch: Any = "batch", height: Any = "height", width: Any = "width") -> onnx.ModelProto:
    """Two stages, a name with a slash, one with a comma, a vector at the end."""
    node = helper.make_node
    return model(
        [
            node("Conv", ["image", "w1"], ["stem/conv"], "stem", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["stem/conv"], ["stem/relu"], "stem_relu"),
            node("Conv", ["stem/relu", "w2"], ["block,1"], "block1", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["block,1"], ["block1.relu"], "block1_relu"),
            node("Conv", ["block1.relu", "w3"], ["block2.conv"], "block2", pads=[1, 1, 1, 1]),
            node("Add", ["block2.conv", "block1.relu"], ["block2.add"], "block2_add"),
            node("GlobalAveragePool", ["block2.add"], ["pool"], "pool"),
            node("Flatten", ["pool"], ["flatten"], "flatten"),
            node("Gemm", ["flatten", "w4", "b4"], ["logits"], "logits", transB=1),
        ],
        {"image": [batch, 3, height, width]},
        ["logits"],
        [
            weight("w1", 8, 3, 3, 3),
            weight("w2", 16, 8, 3, 3),
            weight("w3", 16, 16, 3, 3),
            weight("w4", 5, 16),
            weight("b4", 5),
        ],
    )


def reshaping_cnn() -> onnx.ModelProto:
    """A fixed batch of one, and a reshape whose constant holds that one: two images cannot share a batch."""
    node = helper.make_node
    target = numpy_helper.from_array(np.array([1, 8], np.int64), "target")
    return model(
        [
            node("Conv", ["image", "w1"], ["conv"], "conv"),
            node("Relu", ["conv"], ["relu"], "relu"),
            node("GlobalAveragePool", ["relu"], ["pool"], "pool"),
            node("Reshape", ["pool", "target"], ["vector"], "vector"),
        ],
        {"image": [1, 3, 8, 8]},
        ["vector"],
        [weight("w1", 8, 3, 3, 3), target],
    )


def merging_cnn() -> onnx.ModelProto:
    """A last layer of which nobody knows which axes are channels and space."""
    node = helper.make_node
    return model(
        [
            node("Conv", ["image", "w1"], ["conv"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
            node("Relu", ["conv"], ["relu"], "relu"),
            node("Reshape", ["relu", "target"], ["merged"], "merged"),
        ],
        {"image": [1, 3, 32, 32]},
        ["merged"],
        [weight("w1", 8, 3, 3, 3), numpy_helper.from_array(np.array([1, -1, 4], np.int64), "target")],
    )


def put(
    repository: Path, name: str, proto: onnx.ModelProto, version: str = "1", toml: str | None = None
) -> Path:
    """Write a model into a repository."""
    folder = repository / name / version
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, folder / "model.onnx")
    if toml is not None:
        (repository / name / "model.toml").write_text(toml, "utf-8")
    return folder / "model.onnx"


def photograph(width: int = 120, height: int = 90, seed: int = 0) -> Image.Image:
    """A picture drawn by code: sky, sun, a house and some noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (height, width, 3))
    sky = np.linspace([90, 140, 220], [230, 220, 200], height)[:, None, :] + noise
    picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((width * 0.7, height * 0.1, width * 0.9, height * 0.35), fill=(250, 220, 60))
    draw.rectangle((width * 0.2, height * 0.5, width * 0.55, height * 0.9), fill=(160, 60, 50))
    draw.polygon(
        [(width * 0.15, height * 0.5), (width * 0.38, height * 0.25), (width * 0.6, height * 0.5)],
        (70, 40, 40),
    )
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
