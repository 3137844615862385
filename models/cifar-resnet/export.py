"""Write a trained residual network as an ONNX file whose names are what a person reads.

The graph is made by hand, not by an exporter, which would fold the BatchNorms and name the tensors
by numbers: every step of the network is to be looked at by name.
"""

from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor


class GraphWriter:
    """Collects nodes, each named like its output tensor, and their initializers."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, name: str, source: str | None = None) -> str:
        """Add an entry of the state dict as an initializer; its name."""
        values = self.state[source or name].detach().float().contiguous().numpy()
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Add a node; the name of its output, which is its own."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv_norm(self, conv: str, norm: str, x: str, stride: int = 1) -> str:
        """Add a convolution and its BatchNormalization, not folded: each has a map to look at."""
        kernel = self.state[f"{conv}.weight"].shape[-1]
        y = self.node(
            "Conv",
            conv,
            [x, self.weight(f"{conv}.weight")],
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[kernel // 2] * 4,
        )
        sources = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        parts = [self.weight(f"{norm}.{to}", f"{norm}.{of}") for to, of in sources.items()]
        return self.node("BatchNormalization", norm, [y, *parts], epsilon=1e-5)

    def block(self, name: str, x: str) -> str:
        """Add a basic block; one that widens has a shortcut convolution and halves the size."""
        wider = f"{name}.shortcut.conv.weight" in self.state
        y = self.conv_norm(f"{name}.conv1", f"{name}.bn1", x, 1 + wider)
        y = self.node("Relu", f"{name}.relu1", [y])
        y = self.conv_norm(f"{name}.conv2", f"{name}.bn2", y)
        if wider:
            x = self.conv_norm(f"{name}.shortcut.conv", f"{name}.shortcut.bn", x, 2)
        return self.node("Relu", f"{name}.relu", [self.node("Add", f"{name}.add", [y, x])])


def export(state: dict[str, Tensor], stages: int, blocks: int, path: Path) -> None:
    """Write the network as ONNX with the state dict's own names, and check the file."""
    writer = GraphWriter(state)
    x = writer.node("Relu", "stem.relu", [writer.conv_norm("stem.conv", "stem.bn", "image")])
    for stage in range(1, stages + 1):
        for block in range(1, blocks + 1):
            x = writer.block(f"stage{stage}.block{block}", x)
    x = writer.node("Flatten", "flatten", [writer.node("GlobalAveragePool", "pool", [x])])
    head = map(writer.weight, ("logits.weight", "logits.bias"))
    writer.node("Gemm", "logits", [x, *head], transB=1)
    classes = len(state["logits.bias"])
    shapes = {"image": ["batch", 3, "height", "width"], "logits": ["batch", classes]}
    info = helper.make_tensor_value_info
    ends = [[info(name, TensorProto.FLOAT, shape)] for name, shape in shapes.items()]
    graph = helper.make_graph(writer.nodes, "cifar-resnet", *ends, writer.initializers)
    proto = helper.make_model(
        graph,
        producer_name="featuremaps",
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        doc_string="Residual network with 0.70 M parameters, trained on CIFAR-10.",
    )
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
