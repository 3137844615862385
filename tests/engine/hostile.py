"""Files that nobody should load: each does something that a service must survive."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.builders import model, small_cnn, weight

node = helper.make_node
IMAGE = {"image": [1, 3, 8, 8]}
BILLION = 1_000_000_000


def integers(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def saved(proto: onnx.ModelProto, file: Path) -> None:
    file.write_bytes(proto.SerializeToString())


def external(location: str) -> onnx.ModelProto:
    proto = small_cnn()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return proto


def external_data_elsewhere(file: Path) -> None:
    saved(external("../../../../../../../../../../etc/passwd"), file)


def external_data_by_an_absolute_path(file: Path) -> None:
    saved(external("/etc/passwd"), file)


def external_data_through_a_link(file: Path) -> None:
    (file.parent / "weights").symlink_to("/etc/passwd")
    saved(external("weights"), file)


def billion_elements_declared(file: Path) -> None:
    huge = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[BILLION])
    saved(model([node("Add", ["image", "huge"], ["out"])], IMAGE, ["out"], [huge]), file)


def billion_elements_in_a_few_bytes(file: Path) -> None:
    proto = model([node("Add", ["image", "sparse"], ["out"])], IMAGE, ["out"])
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    sparse = helper.make_sparse_tensor(values, integers("indices", 5), [BILLION])
    proto.graph.sparse_initializer.append(sparse)
    saved(proto, file)


def more_elements_than_numbers(file: Path) -> None:
    huge = TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=[2**40, 2**40])
    saved(model([node("Add", ["image", "huge"], ["out"])], IMAGE, ["out"], [huge]), file)


def constant_that_unfolds(file: Path) -> None:
    """Eight bytes of shape, four billion of zeros: the runtime folds it when it compiles."""
    nodes = [
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        node("Add", ["image", "sum"], ["out"]),
    ]
    saved(model(nodes, IMAGE, ["out"], [integers("shape", BILLION)]), file)


def map_that_unfolds(file: Path) -> None:
    """Known only when it runs."""
    nodes = [
        node("Conv", ["image", "w"], ["map"], pads=[1, 1, 1, 1]),
        node("Shape", ["map"], ["shape"]),
        node("Mul", ["shape", "times"], ["larger"]),
        node("ConstantOfShape", ["larger"], ["zeros"]),
        node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        node("Add", ["map", "sum"], ["out"]),
    ]
    weights = [weight("w", 8, 3, 3, 3), integers("times", 1, 1, 100, 100)]
    saved(model(nodes, {"image": ["n", 3, "h", "w"]}, ["out"], weights), file)


def shape_that_doubles(file: Path) -> None:
    """Shape inference follows the values of shapes: 2^60 of them."""
    nodes = [node("Shape", ["image"], ["s0"])]
    nodes += [node("Concat", [f"s{i}", f"s{i}"], [f"s{i + 1}"], axis=0) for i in range(60)]
    nodes += [node("ConstantOfShape", ["s60"], ["out"])]
    saved(model(nodes, IMAGE, ["out"]), file)


def million_nodes(file: Path) -> None:
    relu = node("Relu", ["image"], ["x"])
    proto = model([relu], IMAGE, ["x"])
    body = proto.graph.node[0].SerializeToString()
    field = b"\x0a" + bytes([len(body)]) + body
    graph = proto.graph.SerializeToString() + field * 1_000_000
    proto.ClearField("graph")
    size = len(graph)
    varint = bytearray()
    while size >= 0x80:
        varint.append(size & 0x7F | 0x80)
        size >>= 7
    file.write_bytes(proto.SerializeToString() + b"\x3a" + bytes([*varint, size]) + graph)


def many_tensors(file: Path) -> None:
    proto = model([node("Relu", ["image"], ["out"])], IMAGE, ["out"])
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], float_data=[1])
    proto.graph.initializer.extend([tensor] * 30_000)
    saved(proto, file)


def cycle(file: Path) -> None:
    nodes = [node("Add", ["image", "b"], ["a"]), node("Relu", ["a"], ["b"])]
    saved(model(nodes, IMAGE, ["b"]), file)


def operators_of_a_library(file: Path) -> None:
    proto = model([node("Evil", ["image"], ["out"], domain="org.evil")], IMAGE, ["out"])
    proto.opset_import.append(helper.make_opsetid("org.evil", 1))
    saved(proto, file)


def function_that_calls_itself(file: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    call = node("Again", ["x"], ["y"], domain="local")
    again = helper.make_function("local", "Again", ["x"], ["y"], [call], opsets)
    proto = model([node("Again", ["image"], ["out"], domain="local")], IMAGE, ["out"])
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.functions.append(again)
    saved(proto, file)


def endless_loop(file: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Relu", ["before"], ["after"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, None),
        ],
        [value("on", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, None)],
    )
    many = numpy_helper.from_array(np.array(2**62, np.int64), "many")
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        node("Conv", ["image", "w"], ["map"]),
        node("Loop", ["many", "yes", "map"], ["out"], body=body),
    ]
    saved(model(nodes, IMAGE, ["out"], [many, yes, weight("w", 8, 3, 3, 3)]), file)


def more_bytes_than_allowed(file: Path) -> None:
    """A file with a hole, of which nothing is on the disk."""
    saved(small_cnn(), file)
    os.truncate(file, 5 << 30)


def input_without_end(file: Path) -> None:
    shape = {"image": [1, 3, 1 << 20, 1 << 20]}
    saved(model([node("Conv", ["image", "w"], ["out"])], shape, ["out"], [weight("w", 8, 3, 3, 3)]), file)


def pipe(file: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(file)


# What each is refused for.
HOSTILE: dict[Callable[[Path], None], str] = {
    external_data_elsewhere: "own folder",
    external_data_by_an_absolute_path: "own folder",
    external_data_through_a_link: "link that leaves",
    billion_elements_declared: "max_model_bytes",
    billion_elements_in_a_few_bytes: "max_model_bytes",
    more_elements_than_numbers: "max_model_bytes",
    constant_that_unfolds: "memory|not valid|did not run",
    map_that_unfolds: "memory|did not run",
    shape_that_doubles: "memory|longer than|crashes",
    million_nodes: "max_model_nodes",
    many_tensors: "max_model_nodes",
    cycle: "cycle",
    operators_of_a_library: "libraries of operators are not loaded",
    function_that_calls_itself: "crashes|refuses|nested|memory",
    endless_loop: "longer than",
    more_bytes_than_allowed: "max_model_bytes",
    input_without_end: "memory|did not run",
    pipe: "no file",
}
