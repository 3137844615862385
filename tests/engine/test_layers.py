import cProfile
import math
import time

import numpy as np
import pytest
from onnx import TensorProto

from service.engine.layers.listing import list_layers
from service.engine.nodes import Network, Node
from service.values import TensorSpec
from tests.builders import known
from tests.engine.graphs import GOOD, LIGHT_NAMES, actual, by_name, good, light, model, network, node

# A catalogue is made at every load; DenseNet-121 has 1746 nodes. Thrice the aim, for busy machines.
LONGEST_S = 0.9


# Those that run on zeros in well under a second.
QUICK = [n for n in GOOD if n not in ("style_candy", "tbefn_240x320", "superres_core_224")]


@pytest.mark.parametrize("name", QUICK)
def test_shapes_and_dtypes_are_what_the_runtime_gives(name: str) -> None:
    found = {row.name: (row.dtype, row.shape) for row in list_layers(good(name))}
    assert found == {n: (spec.dtype, spec.shape) for n, spec in actual(name).items() if n in found}
    assert set(good(name).outputs) <= set(found)


@pytest.mark.parametrize("name", [*GOOD, *LIGHT_NAMES])
def test_every_row_agrees_with_itself(name: str) -> None:
    layers = list_layers(light(name) if name in LIGHT_NAMES else good(name))
    assert [row.index for row in layers] == list(range(len(layers)))
    for row in layers:
        if row.op == "Dropout" and not row.dtype:
            continue  # ONNX's inference leaves out the mask of old operator sets.
        assert row.bytes_per_image == math.prod(map(known, known(row.shape))) * np.dtype(row.dtype).itemsize
        assert row.channels == (None if row.channel_axis is None else known(row.shape)[row.channel_axis])
        assert (row.receptive_field.size is None) == (row.receptive_field.status == "unknown")
        assert (row.reduction is None) == (row.centre is None)
        assert known(row.cumulative_macs) >= known(row.macs)
    assert any(row.stage == 0 for row in layers)


@pytest.mark.parametrize("name", [*GOOD, *LIGHT_NAMES])
def test_exact_fields_have_their_size_and_place_within_reason(name: str) -> None:
    layers = list_layers(light(name) if name in LIGHT_NAMES else good(name))
    exact = [row for row in layers if row.receptive_field.status == "exact"]
    assert exact
    for row in exact:
        starts, sizes = known(row.receptive_field.start), known(row.receptive_field.size)
        ends = [(s, s + n - 1) for s, n in zip(starts, sizes, strict=True)]
        assert all(a <= c <= b for (a, b), c in zip(ends, known(row.centre), strict=True))


def test_the_largest_known_network_is_listed_fast() -> None:
    network = light("densenet121")
    start = time.process_time()
    list_layers(network)
    assert time.process_time() - start < LONGEST_S


def calls_for(count: int) -> int:
    """How many functions are called to list a chain of so many convolutions."""
    nodes = [Node(f"n{i}", "Conv", "", (f"t{i}", "w"), (f"t{i + 1}",)) for i in range(count)]
    specs = {f"t{i}": TensorSpec(f"t{i}", "float32", (1, 1, 9, 9)) for i in range(count + 1)}
    weights = {"w": TensorSpec("w", "float32", (1, 1, 1, 1))}
    whole = Network(nodes, (specs["t0"],), (f"t{count}",), {**specs, **weights}, {})
    profile = cProfile.Profile()
    assert profile.runcall(list_layers, whole)[-1].cumulative_macs == 81 * count
    return sum(entry.callcount for entry in profile.getstats())


def test_a_network_of_thousands_of_nodes_takes_no_quadratic_work() -> None:
    assert calls_for(4000) < 2.2 * calls_for(2000)


def test_only_what_depends_on_the_input_is_a_layer() -> None:
    nodes = [node("Relu", ["k"], ["constant"]), node("Add", ["x", "constant"], ["y"])]
    assert list(
        by_name(list_layers(network(model(nodes, [1, 3], ["y"], {"k": np.ones(3, np.float32)}))))
    ) == ["y"]


def test_sequences_are_left_out_and_unknown_tensors_are_not() -> None:
    nodes = (
        Node("a", "SplitToSequence", "", ("x",), ("sequence",)),
        Node("b", "Strange", "vendor", ("x",), ("unknown",)),
    )
    x, sequence = TensorSpec("x", "float32", (1, 3, 4, 4)), TensorSpec("sequence", "", None)
    found = list_layers(Network(nodes, (x,), ("unknown",), {"x": x, "sequence": sequence}, {}))
    assert [(row.name, row.shape, row.dtype, row.macs) for row in found] == [("unknown", None, "", None)]


def test_text_has_no_bytes_and_names_stay_as_they_are() -> None:
    nodes = [node("Cast", ["x"], ["a/b:0 ü"], to=TensorProto.STRING)]
    row = list_layers(network(model(nodes, [1, 3], ["a/b:0 ü"])))[0]
    assert (row.name, row.dtype, row.bytes_per_image) == ("a/b:0 ü", "str", None)


def test_an_open_batch_counts_as_one_image() -> None:
    conv = node("Conv", ["x", "w"], ["y"])
    proto = model([conv], ["n", 3, 8, 8], ["y"], {"w": np.ones((2, 3, 3, 3), np.float32)})
    row = list_layers(network(proto))[0]
    assert (row.shape, row.batch_axis, row.channels) == ((None, 2, 6, 6), 0, 2)
    assert (row.bytes_per_image, row.macs) == (288, 1944)


def test_an_open_size_leaves_costs_and_spans_open() -> None:
    conv = node("Conv", ["x", "w"], ["a"])
    nodes = [conv, node("GlobalAveragePool", ["a"], ["y"])]
    proto = model(nodes, [1, 3, "h", "w_"], ["y"], {"w": np.ones((2, 3, 3, 3), np.float32)})
    found = by_name(list_layers(network(proto)))
    assert (found["a"].macs, found["a"].bytes_per_image, found["y"].cumulative_macs) == (None, None, None)
    assert found["a"].receptive_field.size == (3, 3)
    assert found["y"].receptive_field.size is None
    assert found["y"].receptive_field.status == "whole_input"
