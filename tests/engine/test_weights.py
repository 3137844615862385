"""Constant weights as the runtime itself computes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper

from service.engine.graph import Graph, read
from service.engine.weights import weight
from tests.builders import known, put, small_cnn
from tests.engine.graphs import every_tensor, graph_of, model, node, session

RNG = np.random.default_rng(0)
CONSTANTS: dict[str, Any] = {
    "f": RNG.normal(0, 1, (4, 3, 2)).astype(np.float32),
    "q": RNG.integers(-128, 128, (4, 3, 2)).astype(np.int8),
    "s": np.float32(0.013),
    "z": np.int8(-3),
    "s4": RNG.uniform(0.01, 0.02, 4).astype(np.float32),
    "z4": RNG.integers(-5, 5, 4).astype(np.int8),
    "shape": np.array([0, -1]),
}
CHAINS = {
    "Identity": [node("Identity", ["f"], ["y"])],
    "Cast": [node("Cast", ["q"], ["y"], to=TensorProto.FLOAT)],
    "Transpose": [node("Transpose", ["f"], ["y"], perm=[1, 2, 0])],
    "Transpose without an order": [node("Transpose", ["f"], ["y"])],
    "Reshape": [node("Reshape", ["f", "shape"], ["y"])],
    "DequantizeLinear": [node("DequantizeLinear", ["q", "s", "z"], ["y"])],
    "DequantizeLinear without a zero point": [node("DequantizeLinear", ["q", "s"], ["y"])],
    "DequantizeLinear per channel": [node("DequantizeLinear", ["q", "s4", "z4"], ["y"], axis=0)],
    "QuantizeLinear": [node("QuantizeLinear", ["f", "s", "z"], ["y"])],
    "a chain": [
        node("QuantizeLinear", ["f", "s4", "z4"], ["a"], axis=0),
        node("DequantizeLinear", ["a", "s4", "z4"], ["b"], axis=0),
        node("Reshape", ["b", "shape"], ["c"]),
        node("Transpose", ["c"], ["y"]),
    ],
}


def graph(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, ArrayLike] | None = None) -> Graph:
    return graph_of(model(nodes, [1], ["y"], constants or CONSTANTS))


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_of_constants_has_the_runtimes_values(chain: str) -> None:
    built = graph(CHAINS[chain])
    expected = session(every_tensor(built)).run(["y"], {})[0]
    found = known(weight(built, "y"))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "attribute", [{"value_floats": [1.5, 2.5]}, {"value": helper.make_tensor("t", 1, [2], [1.5, 2.5])}]
)
def test_a_constant_node_is_a_stored_tensor(attribute: dict[str, Any]) -> None:
    np.testing.assert_array_equal(weight(graph([node("Constant", [], ["y"], **attribute)]), "y"), [1.5, 2.5])


def test_a_large_constant_node_is_read_too() -> None:
    values = RNG.normal(0, 1, 5000).astype(np.float32)
    made = node("Constant", [], ["y"], value=onnx.numpy_helper.from_array(values))
    np.testing.assert_array_equal(weight(graph([made]), "y"), values)


def test_external_data_is_read_and_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    path = put(tmp_path, "m", small_cnn())
    inside = read(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = read(path)
    cut = outside.cut(["logits"])
    np.testing.assert_array_equal(weight(outside, "w1"), weight(inside, "w1"))
    assert outside.cut(["logits"]) == cut


def test_what_depends_on_the_input_has_no_value() -> None:
    assert weight(graph([node("Identity", ["x"], ["y"])]), "y") is None


def test_another_operator_leaves_the_value_unknown() -> None:
    assert weight(graph([node("Sqrt", ["f"], ["y"])]), "y") is None


def test_a_name_that_is_nowhere_has_no_value() -> None:
    assert weight(graph([node("Identity", ["f"], ["y"])]), "nowhere") is None


def test_an_ill_formed_chain_has_no_value() -> None:
    assert weight(graph([node("Reshape", ["f", "t"], ["y"])], {**CONSTANTS, "t": np.array([7])}), "y") is None


def test_a_chain_longer_than_exporters_write_is_not_followed() -> None:
    names = ["f", *"abcdeg", "y"]
    steps = [node("Identity", [names[i]], [names[i + 1]]) for i in range(7)]
    assert weight(graph(steps, {"f": CONSTANTS["f"]}), "y") is None


@pytest.mark.parametrize(("op", "values"), [("DequantizeLinear", "q"), ("QuantizeLinear", "f")])
def test_scales_of_blocks_leave_the_value_unknown(op: str, values: str) -> None:
    assert weight(graph([node(op, [values, "s", "z"], ["y"], block_size=2)]), "y") is None
