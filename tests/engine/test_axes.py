from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike

from service.engine.layers.axes import find_roles, input_layout
from service.engine.layers.listing import list_layers
from service.values import Layer
from tests.engine.graphs import GOOD, LIGHT_NAMES, by_name, good, light, model, network, node

IDENTITY = {"w": np.ones((3, 3, 1, 1), np.float32)}


def roles(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, ArrayLike] | None = None,
    name: str = "y",
    opset: int = 17,
) -> tuple[str | None, ...]:
    found = find_roles(network(model(nodes, shape, [name], {**IDENTITY, **(constants or {})}, opset)))
    return found[name]


def rows(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, ArrayLike] | None = None,
) -> dict[str, Layer]:
    return by_name(list_layers(network(model(nodes, shape, ["y"], {**IDENTITY, **(constants or {})}))))


def reshaped(target: list[int], batch: int | str) -> object:
    """The roles after a reshape of a map (N, 3, 4, 5) for one image; `batch` is the file's."""
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Reshape", ["a", "s"], ["y"])]
    proto = model(nodes, [batch, 3, 4, 5], ["y"], {**IDENTITY, "s": np.array(target, np.int64)})
    return find_roles(network(proto, [1, 3, 4, 5]))["y"]


@pytest.mark.parametrize("name", GOOD)
def test_inputs_of_real_files_have_their_layout(name: str) -> None:
    network = good(name)
    expected = "NHWC" if name.endswith("nhwc") else "NCHW"
    assert input_layout(network, network.inputs[0].name) == expected


@pytest.mark.parametrize("name", LIGHT_NAMES)
def test_inputs_of_light_models_are_nchw(name: str) -> None:
    network = light(name)
    assert input_layout(network, network.inputs[0].name) == "NCHW"


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((1, 3, 8, 8), "NCHW"),
        ((1, 8, 8, 3), "NHWC"),
        ((1, 3, 8, 3), None),
        ((1, 8, 8, 8), None),
        ((1, 3), None),
    ],
)
def test_without_a_convolution_the_shape_decides_or_nothing_does(
    shape: Sequence[int | str], layout: str | None
) -> None:
    assert input_layout(network(model([node("Relu", ["x"], ["y"])], shape, ["y"])), "x") == layout


def test_an_input_that_is_not_there_has_no_layout() -> None:
    assert input_layout(network(model([node("Relu", ["x"], ["y"])], [1, 3, 4, 4], ["y"])), "z") is None


def test_the_layout_follows_transpose_slice_and_arithmetic_to_the_first_convolution() -> None:
    nodes = [
        node("Mul", ["x", "k"], ["a"]),
        node("Slice", ["a", "i", "j", "l"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 3, 1, 2]),
        node("Conv", ["c", "w"], ["y"]),
    ]
    integers = {n: np.array([v]) for n, v in {"i": 0, "j": 6, "l": 1}.items()}
    constants: dict[str, Any] = {"k": np.float32(2), **IDENTITY, **integers}
    assert input_layout(network(model(nodes, [1, 9, 9, 3], ["y"], constants)), "x") == "NHWC"


def test_swapped_rows_and_columns_stay_swapped() -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), node("Conv", ["t", "w"], ["y"])]
    assert input_layout(network(model(nodes, [1, 3, 4, 5], ["y"], IDENTITY)), "x") is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0, -1], ("N", None)),
        ([-1, 60], ("N", None)),
        ([1, 60], ("N", None)),
        ([1, -1], (None, None)),
        ([-1, 30], (None, None)),
        ([60], (None,)),
        ([1, 3, 20], ("N", "C", None)),
        ([0, 3, 1, 4, 5], ("N", "C", None, "H", "W")),
        ([3, 1, 4, 5], (None, None, "H", "W")),
    ],
)
def test_reshape_keeps_what_is_certain_for_any_number_of_images(target: list[int], expected: object) -> None:
    assert reshaped(target, "N") == expected


@pytest.mark.parametrize(("target", "expected"), [([1, -1], ("N", None)), ([1, 3, -1], ("N", "C", None))])
def test_where_the_file_takes_one_image_a_leading_axis_of_one_is_the_batch(
    target: list[int], expected: object
) -> None:
    assert reshaped(target, 1) == expected


def test_a_target_computed_from_the_batch_size_keeps_the_batch() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Shape", ["a"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["a", "target"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axis": np.array([0]), "rest": np.array([-1, 2])}
    assert roles(nodes, [1, 3, 4, 5], constants) == ("N", None, None)


def test_detectors_that_take_one_image_keep_its_axis() -> None:
    assert by_name(list_layers(good("ultraface_RFB-320")))["boxes"].batch_axis == 0
    assert by_name(list_layers(good("yolox_nano")))["output"].batch_axis == 0


def test_a_channel_shuffle_gives_channels_back() -> None:
    rows = by_name(list_layers(light("shufflenet")))
    assert [rows[n].layout for n in ("r7", "r8", "r9")] == [None, None, "NCHW"]
    assert [rows[n].channels for n in ("r7", "r9")] == [None, 112]


def test_a_pooled_map_becomes_a_vector() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("GlobalAveragePool", ["a"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "g"], ["y"]),
    ]
    found = rows(nodes, [1, 3, 4, 5], {"g": np.ones((3, 7), np.float32)})
    assert [found[n].layout for n in ("p", "f", "y")] == ["NCHW", "NC", "NC"]
    assert found["y"].channels == 7


def test_flattening_a_whole_map_leaves_no_channels() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Flatten", ["a"], ["y"])]
    assert rows(nodes, [1, 3, 4, 5])["y"].channel_axis is None


@pytest.mark.parametrize(("keep", "expected"), [(1, ("N", "C", "H", "W")), (0, ("N", "C"))])
def test_means_over_space_keep_or_drop_axes(keep: int, expected: object) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("ReduceMean", ["a"], ["y"], axes=[2, 3], keepdims=keep)]
    assert roles(nodes, [1, 3, 4, 5]) == expected


@pytest.mark.parametrize("op", ["Squeeze", "Unsqueeze"])
def test_squeezing_moves_axes(op: str) -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node(op, ["a", "i"], ["y"])]
    expected = ("N", "C", "W") if op == "Squeeze" else ("N", "C", None, "H", "W")
    assert roles(nodes, [1, 3, 1, 5], {"i": np.array([2])}) == expected


@pytest.mark.parametrize("op", ["Slice", "Tile", "Concat"])
def test_a_batch_that_is_cut_repeated_or_joined_is_no_batch(op: str) -> None:
    inputs = {"Slice": ["a", "i", "j", "i"], "Tile": ["a", "k"], "Concat": ["a", "a"]}[op]
    attributes = {"axis": 0} if op == "Concat" else {}
    nodes = [node("Conv", ["x", "w"], ["a"]), node(op, inputs, ["y"], **attributes)]
    constants = {"i": np.array([0]), "j": np.array([1]), "k": np.array([2, 1, 1, 1])}
    assert roles(nodes, [2, 3, 4, 5], constants) == (None, "C", "H", "W")


def test_arithmetic_with_many_constant_pictures_is_no_batch() -> None:
    nodes = [node("Conv", ["x", "w"], ["a"]), node("Add", ["a", "k"], ["y"])]
    assert roles(nodes, [1, 3, 4, 5], {"k": np.zeros((2, 3, 1, 1), np.float32)})[0] is None


def test_an_unknown_operator_leaves_nothing() -> None:
    custom = node("Relu", ["a"], ["y"])
    custom.domain = "some.vendor"
    nodes = [node("Conv", ["x", "w"], ["a"]), custom]
    proto = model(nodes, [1, 3, 4, 5], ["y"], IDENTITY)
    row = by_name(list_layers(network(proto)))["y"]
    assert (row.layout, row.batch_axis, row.receptive_field.status) == (None, None, "unknown")
