"""Paths of modules, on small graphs with names and metadata as exporters write them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.layers.listing import list_layers
from service.engine.layers.modules import Modules, find_modules
from service.engine.nodes import Network, Node
from service.engine.origins import MAX_SCOPES_LENGTH, origin_of
from service.engine.selection import LayerTable
from service.errors import LayerNotFound
from service.values import TensorSpec

SCOPES, FX_NODE = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.fx_node"
CLASSES, RULES = "pkg.torch.onnx.class_hierarchy", "pkg.onnxscript.rewriter.rule_name"
IMAGE = TensorSpec("x", "float32", (1, 3, 8, 8))


def network(nodes: Sequence[Node], *outputs: str, producer: str = "pytorch") -> Network:
    tensors = {name: replace(IMAGE, name=name) for node in nodes for name in node.makes}
    return Network(nodes, (IMAGE,), outputs, {"x": IMAGE, **tensors}, {}, producer=producer)


def traced(name: str, *inputs: str, **attributes: object) -> Node:
    """A node as TorchScript's exporter names it: `/layer1/layer1.0/conv1/Conv`."""
    op = name.rpartition("/")[2].partition("_")[0]
    return Node(name, op, "", inputs, (f"{name}_output_0",), attributes)


def out(name: str) -> str:
    return f"{name}_output_0"


def recorded(
    op: str, value: str, scopes: str, inputs: str, reads: str, kind: str = "", rules: str = ""
) -> Node:
    """A node as the dynamo exporter writes it; scopes, inputs and reads are separated by spaces."""
    metadata = {
        SCOPES: repr(["", *scopes.split(), value]),
        CLASSES: repr([kind, "aten"]),
        FX_NODE: f"%{value} : call_function[target=x](args = ({', '.join('%' + r for r in reads.split())}))",
    }
    metadata |= {RULES: rules} if rules else {}
    made = value if not value.startswith("_native") else f"getitem{value[len('_native') :]}"
    return Node(f"node_{value}", op, "", tuple(inputs.split()), (made,), origin=origin_of(metadata))


def table(*nodes: Node, producer: str = "pytorch") -> LayerTable:
    whole = network(nodes, nodes[-1].outputs[0], producer=producer)
    return LayerTable(list_layers(whole), whole.outputs, (), find_modules(whole))


def selected(layers: LayerTable, word: str) -> list[str]:
    return [layer.name for layer in layers.select([word])]


def refusal(layers: LayerTable, word: str) -> str:
    with pytest.raises(LayerNotFound) as refused:
        layers.select([word])
    return refused.value.detail


def block(start: str, source: str, folded: bool = True) -> list[Node]:
    """A bottleneck's end: conv2, its norm (folded), act2, conv3 with its norm, Add and act3."""
    stored = ["onnx::Conv_1", "onnx::Conv_2"] if folded else ["w.weight", "w.bias"]
    return [
        traced(f"{start}/conv2/Conv", source, *stored),
        traced(f"{start}/act2/Relu", out(f"{start}/conv2/Conv")),
        traced(f"{start}/conv3/Conv", out(f"{start}/act2/Relu"), "onnx::Conv_3", "onnx::Conv_4"),
        traced(f"{start}/Add", out(f"{start}/conv3/Conv"), source),
        traced(f"{start}/act3/Relu", out(f"{start}/Add")),
    ]


RESNET = table(
    traced("/conv1/Conv", "x", "conv1.weight"),
    *block("/layer3/layer3.0", "/conv1/Conv_output_0"),
    *block("/layer3/layer3.1", "/layer3/layer3.0/act3/Relu_output_0"),
    traced("/pool/GlobalAveragePool", "/layer3/layer3.1/act3/Relu_output_0"),
)


@pytest.mark.parametrize(
    ("path", "tensor"),
    [
        ("conv1", "/conv1/Conv"),
        ("layer3", "/layer3/layer3.1/act3/Relu"),
        ("layer3.0", "/layer3/layer3.0/act3/Relu"),
        ("layer3.0.act2", "/layer3/layer3.0/act2/Relu"),
        ("layer3.0.bn2", "/layer3/layer3.0/conv2/Conv"),
        ("layer3.1.bn3", "/layer3/layer3.1/conv3/Conv"),
        ("module:layer3", "/layer3/layer3.1/act3/Relu"),
    ],
)
def test_a_path_gives_what_the_module_returned(path: str, tensor: str) -> None:
    assert selected(RESNET, path) == [out(tensor)]


def test_a_folded_convolution_is_refused_with_the_path_of_its_norm() -> None:
    detail = refusal(RESNET, "layer3.0.conv2")
    assert "folded by the exporter; ask layer3.0.bn2, or export with" in detail
    assert "do_constant_folding=False" in detail


def test_a_layer_carries_the_path_of_its_module() -> None:
    modules = {layer.name: layer.module for layer in RESNET.layers}
    assert modules[out("/layer3/layer3.0/conv2/Conv")] == "layer3.0.bn2"
    assert modules[out("/layer3/layer3.0/Add")] == "layer3.0"


def test_a_glob_of_modules_gives_all_layers_inside() -> None:
    names = selected(RESNET, "module:layer3.0*")
    assert len(names) == 5
    assert all("layer3.0" in name for name in names)


def test_a_typing_error_is_answered_with_module_paths() -> None:
    with pytest.raises(LayerNotFound) as refused:
        RESNET.select(["layer3.0.bn4"])
    assert "layer3.0.bn2" in refused.value.extensions["suggestions"]


def test_parameters_of_the_module_itself_are_no_sign_of_folding() -> None:
    layers = table(*block("/layer3/layer3.0", "x", folded=False))
    assert selected(layers, "layer3.0.conv2") == [out("/layer3/layer3.0/conv2/Conv")]


def test_a_standardised_weight_is_no_sign_of_folding() -> None:
    weight = Node("/conv/Mul", "Mul", "", ("conv.weight", "g"), (out("/conv/Mul"),))
    layers = table(
        weight, traced("/conv/Conv", "x", out("/conv/Mul"), "conv.bias"), relu("/act/Relu", "/conv/Conv")
    )
    assert selected(layers, "conv") == [out("/conv/Conv")]


def relu(name: str, source: str) -> Node:
    return traced(name, out(source))


def test_copies_of_shared_anonymous_weights_are_folded_ones() -> None:
    copies = [
        Node("Identity_0", "Identity", "", ("onnx::Conv_1",), ("onnx::Conv_8",)),
        Node("Identity_1", "Identity", "", ("onnx::Conv_2",), ("onnx::Conv_9",)),
    ]
    conv = traced("/conv1/Conv", "x", "onnx::Conv_8", "onnx::Conv_9")
    assert selected(table(*copies, conv, relu("/relu/Relu", "/conv1/Conv")), "bn1") == [out("/conv1/Conv")]


def folded(name: str, source: str) -> Node:
    return traced(name, source, "onnx::Conv_1", "onnx::Conv_2")


def test_an_activation_inside_of_a_norm_shows_which_norm_was_folded() -> None:
    layers = table(
        folded("/layer1/conv1/Conv", "x"),
        relu("/layer1/norm2/act/Relu", "/layer1/conv1/Conv"),
        traced("/layer1/conv2/Conv", out("/layer1/norm2/act/Relu"), "layer1.conv2.weight"),
        relu("/relu/Relu", "/layer1/conv2/Conv"),
    )
    assert layers.layers[0].module == "layer1.norm2"
    assert selected(layers, "layer1.norm2") == [out("/layer1/norm2/act/Relu")]
    assert "ask layer1.norm2" in refusal(layers, "layer1.conv1")


def test_norms_of_split_attention_start_at_zero() -> None:
    layers = table(
        folded("/b/conv/Conv", "x"),
        relu("/b/act0/Relu", "/b/conv/Conv"),
        folded("/b/fc1/Conv", out("/b/act0/Relu")),
        relu("/b/act1/Relu", "/b/fc1/Conv"),
        traced("/b/fc2/Conv", out("/b/act1/Relu"), "b.fc2.weight", "b.fc2.bias"),
        relu("/act/Relu", "/b/fc2/Conv"),
    )
    assert selected(layers, "b.bn0") == [out("/b/conv/Conv")]
    assert selected(layers, "b.bn1") == [out("/b/fc1/Conv")]


def test_norms_of_an_inverted_residual_follow_the_order_of_its_convolutions() -> None:
    layers = table(
        folded("/b/conv_pw/Conv", "x"),
        relu("/b/bn1/act/Relu", "/b/conv_pw/Conv"),
        folded("/b/conv_dw/Conv", out("/b/bn1/act/Relu")),
        relu("/b/bn2/act/Relu", "/b/conv_dw/Conv"),
        folded("/b/conv_pwl/Conv", out("/b/bn2/act/Relu")),
        relu("/relu/Relu", "/b/conv_pwl/Conv"),
    )
    assert selected(layers, "b.bn3") == [out("/b/conv_pwl/Conv")]
    assert selected(layers, "b") == [out("/b/conv_pwl/Conv")]


def test_a_norm_before_its_convolution_is_not_guessed() -> None:
    layers = table(
        relu("/b/relu/Relu", "/x/X"),
        folded("/b/conv1/Conv", "x"),
        relu("/b/relu_1/Relu", "/b/conv1/Conv"),
        traced("/b/conv2/Conv", out("/b/relu_1/Relu"), "b.conv2.weight"),
        relu("/relu/Relu", "/b/conv2/Conv"),
    )
    assert "a norm whose path is not in the file" in refusal(layers, "b.conv1")
    with pytest.raises(LayerNotFound):
        layers.select(["b.bn1"])


def test_a_sequence_ending_in_an_unknown_norm_has_no_output() -> None:
    layers = table(relu("/s/s.0/Relu", "/y/Y"), folded("/s/s.1/Conv", "x"), relu("/act/Relu", "/s/s.1/Conv"))
    assert "folded by the exporter" in refusal(layers, "s")


def test_the_member_between_two_of_a_sequence_is_the_norm() -> None:
    layers = table(
        folded("/s/s.0/Conv", "x"),
        relu("/s/s.2/Relu", "/s/s.0/Conv"),
        folded("/s/s.3/Conv", out("/s/s.2/Relu")),
        relu("/act/Relu", "/s/s.3/Conv"),
    )
    assert selected(layers, "s.1") == [out("/s/s.0/Conv")]
    assert "ask s.1" in refusal(layers, "s.0")


def test_a_module_called_twice_has_no_single_output() -> None:
    layers = table(
        traced("/conv1/Conv", "x", "conv1.weight"),
        relu("/relu/Relu", "/conv1/Conv"),
        traced("/conv2/Conv", out("/relu/Relu"), "conv2.weight"),
        relu("/relu_1/Relu", "/conv2/Conv"),
        traced("/pool/MaxPool", out("/relu_1/Relu")),
    )
    assert "called more than once; ask one of '/relu/Relu_output_0'" in refusal(layers, "relu")
    assert [layer.module for layer in layers.layers] == ["conv1", "relu", "conv2", "relu", "pool"]


def test_a_number_in_the_name_of_a_module_with_parameters_is_no_second_call() -> None:
    layers = table(
        traced("/conv/Conv", "x", "conv.weight"),
        traced("/conv_1/Conv", out("/conv/Conv"), "conv_1.weight"),
        traced("/pool/MaxPool", out("/conv_1/Conv")),
    )
    assert selected(layers, "conv_1") == [out("/conv_1/Conv")]


def test_parameters_show_a_container_that_was_not_called() -> None:
    layers = table(
        traced("/left/left.0/Conv", "x", "body.left.0.weight"),
        relu("/left/left.1/Relu", "/left/left.0/Conv"),
        traced("/pool/MaxPool", out("/left/left.1/Relu")),
    )
    assert selected(layers, "body.left") == [out("/left/left.1/Relu")]
    assert "the container is not called" in refusal(layers, "body")


def test_a_transposition_that_may_have_been_merged_makes_a_module_doubtful() -> None:
    layers = table(relu("/t/Relu", "/y/Y"), traced("/t/Sigmoid", "x"), swap("/Transpose", "/t/Sigmoid"))
    assert "may have merged" in refusal(layers, "t")


def swap(name: str, source: str) -> Node:
    return traced(name, out(source), perm=[0, 1, 3, 2])


def test_a_module_that_does_not_turn_axes_back_is_doubtful() -> None:
    layers = table(
        traced("/norm/Transpose", "x", perm=[0, 2, 3, 1]),
        traced("/norm/LayerNormalization", out("/norm/Transpose"), "norm.weight", "norm.bias"),
        traced("/Mul", out("/norm/LayerNormalization"), "two"),
    )
    assert "changes it back is not in the file" in refusal(layers, "norm")


def test_two_tensors_that_leave_a_module_are_named() -> None:
    layers = table(
        traced("/m/Split", "x"), relu("/m/Relu", "/m/Split"), traced("/Add", out("/m/Split"), out("/m/Relu"))
    )
    assert "more than one of its tensors" in refusal(layers, "m")
    assert "'/m/Relu_output_0'" in refusal(layers, "m")


DYNAMO = table(
    recorded(
        "Conv",
        "_native",
        "layer1 layer1.bn1",
        "x layer1.conv1.weight b",
        "conv2d",
        rules="FuseBatchNormIntoConv",
    ),
    recorded("Relu", "relu", "layer1 layer1.act1", "getitem", "getitem"),
    recorded("Conv", "conv2d_1", "layer1 layer1.conv2", "relu layer1.conv2.weight", "relu p_w"),
    recorded("Add", "add", "layer1", "conv2d_1 relu", "conv2d_1 relu"),
    recorded("Relu", "relu_1", "act", "add", "add"),
)


@pytest.mark.parametrize(
    ("path", "tensor"),
    [("layer1", "add"), ("layer1.bn1", "getitem"), ("layer1.conv2", "conv2d_1"), ("act", "relu_1")],
)
def test_scopes_of_dynamo_name_the_module(path: str, tensor: str) -> None:
    assert selected(DYNAMO, path) == [tensor]


def test_dynamo_names_the_norm_of_a_folded_convolution() -> None:
    assert "ask layer1.bn1, or export with" in refusal(DYNAMO, "layer1.conv1")
    assert "optimize=False" in refusal(DYNAMO, "layer1.conv1")


def test_an_operation_that_the_rewriter_removed_makes_a_module_doubtful() -> None:
    layers = table(
        recorded("Clip", "hardtanh", "pad pad.0", "x", "x"),
        recorded("Conv", "conv2d", "conv", "hardtanh conv.weight", "pad p_w", rules="FuseConvPad"),
    )
    assert "left out an operation" in refusal(layers, "pad")


def test_a_copy_of_the_value_is_as_good() -> None:
    layers = table(
        recorded("Sigmoid", "sigmoid", "drop drop.0", "x", "x"),
        recorded("Relu", "relu", "act", "sigmoid", "clone_3"),
    )
    assert selected(layers, "drop") == ["sigmoid"]


def test_a_layer_of_pytorch_returns_what_its_operation_gives() -> None:
    norm = "torch.nn.modules.batchnorm.BatchNorm1d"
    layers = table(
        recorded("BatchNormalization", "bn", "qkv qkv.bn", "x s", "x p_s", kind=norm),
        recorded("Reshape", "view_1", "attn", "bn shape", "view", rules="ReshapeReshape"),
    )
    assert selected(layers, "qkv.bn") == ["bn"]
    assert "left out an operation" in refusal(layers, "qkv")


def test_operations_that_repeat_in_dynamo_are_further_calls() -> None:
    layers = table(
        recorded("Relu", "relu", "m m.0", "x", "x"),
        recorded("Relu", "relu_1", "m m.0", "relu", "relu"),
        recorded("Add", "add", "", "relu_1 x", "relu_1 x"),
    )
    assert "called more than once" in refusal(layers, "m")


def test_names_of_tf2onnx_hold_the_keras_layer() -> None:
    start = "StatefulPartitionedCall/resnet50"
    names = ["conv1_conv/Conv2D", "conv1_relu/Relu", "pool1_pool/MaxPool"]
    sources = ["x", *(f"{start}/{name}:0" for name in names)]
    nodes = [
        Node(f"{start}/{name}", name.rpartition("/")[2], "", (source,), (f"{start}/{name}:0",))
        for name, source in zip(names, sources, strict=False)
    ]
    layers = table(*nodes, producer="tf2onnx")
    assert [layer.module for layer in layers.layers] == ["conv1_conv", "conv1_relu", "pool1_pool"]
    assert selected(layers, "conv1_relu") == [f"{start}/conv1_relu/Relu:0"]


def test_a_keyword_wins_over_a_module() -> None:
    layers = table(relu("/all/Relu", "/y/Y"), traced("/all/Sigmoid", "x"), relu("/act/Relu", "/all/Sigmoid"))
    assert len(selected(layers, "all")) == 2
    assert selected(layers, "module:all") == [out("/all/Sigmoid")]


def test_the_exact_name_of_a_layer_wins_over_a_module() -> None:
    head = Node("/head/Gemm", "Gemm", "", (out("/conv1/Conv"), "head.weight", "head.bias"), ("conv1",))
    layers = table(traced("/conv1/Conv", "x", "conv1.weight"), head)
    assert selected(layers, "conv1") == ["conv1"]
    assert selected(layers, "module:conv1") == [out("/conv1/Conv")]


def test_files_without_scopes_have_no_modules() -> None:
    nodes = [Node("Conv_0", "Conv", "", ("x", "w"), ("11",)), Node("Relu_1", "Relu", "", ("11",), ("12",))]
    assert find_modules(network(nodes, "12")) == Modules()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "['a'",
        "[1]",
        "{'a': 'b'}",
        "__import__('os')",
        "[" * 5000,
        "['" + "a" * MAX_SCOPES_LENGTH + "']",
    ],
)
def test_scopes_that_are_no_list_of_names_are_ignored(text: str) -> None:
    assert origin_of({SCOPES: text}) is None


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8))
def test_scopes_are_read_as_python_wrote_them(scopes: list[str]) -> None:
    origin = origin_of({SCOPES: repr(scopes)})
    assert origin is not None
    assert [*origin.scopes, origin.value] == scopes


@given(st.lists(st.text(alphabet="/ab._10", max_size=12), min_size=1, max_size=8))
def test_any_names_are_read_without_an_error(names: list[str]) -> None:
    made = ["x", *(f"{name}_output_0" for name in names)]
    nodes = [
        Node(name, "Conv", "", (source, "onnx::Conv_1", "onnx::Conv_2"), (f"{name}_output_0",))
        for name, source in zip(names, made, strict=False)
    ]
    find_modules(network(nodes, made[-1]))
