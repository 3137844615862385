"""Serialised graphs of a few nodes, made by this program for what is done beside a network."""

from collections.abc import Sequence

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

OPSET, IR_VERSION = 17, 8


def hand_on(given: str, same: str) -> bytes:
    """One float32 under another name."""
    return _graph([helper.make_node("Identity", [given], [same])], [(given, [1])], (same, [1]))


def take_rows(element: int) -> bytes:
    """`taken`: the rows of `value` (N, ...) of an ONNX element type that `rows` (k,) int64 names."""
    node = helper.make_node("Gather", ["value", "rows"], ["taken"], axis=0)
    return _graph([node], [("value", None), ("rows", [None])], ("taken", None), element)


def select_and_average(element: int, channel_axis: int | None, spatial_axes: Sequence[int]) -> bytes:
    """`reduced`: of a `map` of four axes the channels that `channels` (k,) int64 names, and then their means.

    Without a channel axis nothing is selected, without spatial axes nothing is averaged. Sums are float64's,
    as numpy's are when it is told so.
    """
    nodes, inputs, last = [], [("map", [None] * 4)], "map"
    if channel_axis is not None:
        nodes.append(helper.make_node("Gather", [last, "channels"], ["selected"], axis=channel_axis))
        inputs.append(("channels", [None]))
        last = "selected"
    if spatial_axes:
        nodes += [
            helper.make_node("Cast", [last], ["wide"], to=TensorProto.DOUBLE),
            helper.make_node("ReduceMean", ["wide"], ["mean"], axes=list(spatial_axes), keepdims=0),
            helper.make_node("Cast", ["mean"], ["rounded"], to=element),
        ]
        last = "rounded"
    nodes.append(helper.make_node("Identity", [last], ["reduced"]))
    return _graph(nodes, inputs, ("reduced", None), element)


def _graph(
    nodes: Sequence[NodeProto],
    inputs: Sequence[tuple[str, Sequence[int | None] | None]],
    output: tuple[str, Sequence[int | None] | None],
    element: int = TensorProto.FLOAT,
) -> bytes:
    given = [_info(*spec, TensorProto.INT64 if index else element) for index, spec in enumerate(inputs)]
    graph = helper.make_graph(nodes, "small", given, [_info(*output, element)])
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


def _info(name: str, shape: Sequence[int | None] | None, element: int) -> ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, element, shape)
