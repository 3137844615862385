"""Reductions, held against numpy written out; the error of every lossy step against its stated bound."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from service.errors import InvalidParameter, NotCombinable, OutOfRange
from service.output.quantise import cast, error_bound
from service.output.reduce import answer_bytes, apply, check, working_bytes
from service.parameters import DtypeChoice, Pool, Reduction
from service.syntax import Channels, Region, read_channels, read_grid, read_region
from service.values import FeatureMap, Layer, Layout, Window
from tests.engine.test_selection import layer as any_layer

FINITE = st.floats(-1000, 1000, width=32)
FLOATS = hnp.arrays("float32", 20, elements=st.floats(-65000, 65000, width=32))
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))


def layer(shape: tuple[int, ...], layout: Layout | None = "NCHW", dtype: str = "float32") -> Layer:
    axis = {"NCHW": 1, "NHWC": 3, "NC": 1}.get(layout or "")
    return replace(
        any_layer("a", 0),
        shape=(1, *shape[1:]),
        layout=layout,
        dtype=dtype,
        channel_axis=axis,
        channels=shape[axis] if axis else None,
    )


def mapped(values: np.ndarray, layout: Layout = "NCHW") -> FeatureMap:
    return FeatureMap(layer(values.shape, layout, values.dtype.name), values)


def reduced(
    values: np.ndarray, layout: Layout = "NCHW", window: Window | None = None, **steps: Any
) -> dict[str, np.ndarray]:
    return apply(mapped(values, layout), Reduction(**steps), [window])


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, str, Reduction, Window | None]:
    """A map in either layout and everything that can be done to it."""
    n, c, h, w = draw(SHAPES)
    layout = draw(st.sampled_from(["NCHW", "NHWC"]))
    shape = (n, c, h, w) if layout == "NCHW" else (n, h, w, c)
    dtype = draw(st.sampled_from(["float32", "float16", "int8"]))
    elements = st.integers(-100, 100) if dtype == "int8" else st.floats(-1000, 1000, width=16)
    values = draw(hnp.arrays(dtype, shape, elements=elements))
    chosen = draw(
        st.none()
        | st.integers(1, c).map(lambda top: Channels(top=top))
        | st.lists(st.integers(0, c - 1), min_size=1, unique=True).map(lambda i: Channels(tuple(i)))
    )
    window = None
    if draw(st.booleans()):
        y, x = draw(st.integers(0, h - 1)), draw(st.integers(0, w - 1))
        window = Window(y, x, draw(st.integers(1, h - y)), draw(st.integers(1, w - x)))
    pool: Pool = draw(st.sampled_from(["none", "avg", "max", "gem"]))
    grid = draw(st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5))) if pool == "none" else None
    target: DtypeChoice = draw(st.sampled_from(["native", "float32", "float16", "uint8"]))
    region = Region(0, 0, 1, 1) if window else None
    return values, layout, Reduction(chosen, region, pool, grid, target), window


def by_hand(values: np.ndarray, layout: str, reduction: Reduction, window: Window | None) -> np.ndarray:
    """Channels, window, pool or grid in float64 and loops, before the cast."""
    x = values.astype(np.float64) if layout == "NCHW" else values.astype(np.float64).transpose(0, 3, 1, 2)
    if reduction.channels and reduction.channels.top:
        ranks = [np.argsort(-np.abs(image).mean(axis=(1, 2)), kind="stable") for image in x]
        x = np.stack([image[rank[: reduction.channels.top]] for image, rank in zip(x, ranks, strict=True)])
    elif reduction.channels:
        x = x[:, list(reduction.channels.indices)]
    if window:
        x = x[:, :, window.y : window.y + window.height, window.x : window.x + window.width]
    if reduction.grid:
        rows, columns = reduction.grid
        h, w = x.shape[2:]
        cells = [
            [
                x[
                    :,
                    :,
                    i * h // rows : -(-(i + 1) * h // rows),
                    j * w // columns : -(-(j + 1) * w // columns),
                ].mean((2, 3))
                for j in range(columns)
            ]
            for i in range(rows)
        ]
        x = np.stack([np.stack(row, axis=-1) for row in cells], axis=-2)
    pools = {"avg": lambda v: v.mean((2, 3)), "max": lambda v: v.max((2, 3)), "gem": gem}
    if reduction.pool != "none":
        return pools[reduction.pool](x)
    return x if layout == "NCHW" else x.transpose(0, 2, 3, 1)


def gem(values: np.ndarray) -> np.ndarray:
    return np.cbrt((np.maximum(values, 1e-6) ** 3).mean((2, 3)))


@given(cases())
def test_numpy_agrees_with_every_reduction(case: tuple[np.ndarray, Layout, Reduction, Window | None]) -> None:
    values, layout, reduction, window = case
    arrays = apply(mapped(values, layout), reduction, [window])
    expected = by_hand(values, layout, reduction, window)
    actual = arrays["a"].astype(np.float64)
    tolerance = 1e-6 * np.abs(expected) + 1e-6
    if reduction.dtype == "uint8":
        scale = arrays["a#scale"].astype(np.float64)
        actual = (actual - arrays["a#zero_point"]) * scale
        tolerance = scale * (1 + 1e-6) + (2e-3 * np.abs(expected) + 2**-24) * (values.dtype == np.float16)
    elif "float16" in (reduction.dtype, values.dtype.name):
        tolerance = 2**-10 * np.abs(expected) + 1e-6
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= tolerance).all()


@given(cases())
def test_the_bytes_are_known_before_anything_runs(
    case: tuple[np.ndarray, Layout, Reduction, Window | None],
) -> None:
    values, layout, reduction, window = case
    arrays = apply(mapped(values, layout), reduction, [window])
    told = answer_bytes(layer(values.shape, layout, values.dtype.name), reduction, len(values), window)
    assert told == sum(array.nbytes for array in arrays.values())


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "steps",
    [
        {"grid": (7, 7)},
        {"grid": (60, 1)},
        {"grid": (1, 60)},
        {"grid": (300, 200)},
        {"pool": "gem"},
        {"channels": Channels(top=2)},
        {"dtype": "uint8"},
        {"grid": (60, 60), "dtype": "uint8"},
        {"channels": Channels(top=30), "pool": "gem", "dtype": "uint8"},
    ],
)
def test_a_reduction_holds_no_more_than_it_was_said_to(steps: dict[str, Any], layout: Layout) -> None:
    """Beside the map, the channels selected of it and the answer; some pages are Python's own."""
    shape = (2, 32, 128, 96) if layout == "NCHW" else (2, 128, 96, 32)
    values, reduction = np.ones(shape, np.float32), Reduction(**steps)
    chosen = Reduction(channels=reduction.channels)
    said = working_bytes(layer(shape, layout), reduction, 2, None)
    said += sum(answer_bytes(layer(shape, layout), r, 2, None) for r in {reduction, chosen} - {Reduction()})
    tracemalloc.start()
    try:
        reduced(values, layout, **steps)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= said + 500_000


@given(hnp.arrays("float32", (2, 3, 4, 5), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_uint8_lies_within_one_scale_and_zero_is_exact(values: np.ndarray) -> None:
    values[0, 0, 0, 0] = 0
    arrays = reduced(values, dtype="uint8")
    scale = arrays["a#scale"].astype(np.float64)
    restored = (arrays["a"].astype(np.float64) - arrays["a#zero_point"]) * scale
    assert arrays["a#scale"].shape == arrays["a#zero_point"].shape == (2, 3, 1, 1)
    assert (np.abs(restored - values) <= scale * (1 + 1e-9)).all()
    assert (restored[values == 0] == 0).all()


def test_onnxs_dequantize_linear_undoes_uint8() -> None:
    values = np.random.default_rng(0).normal(size=(1, 4, 5, 5)).astype(np.float32)
    arrays = reduced(values, dtype="uint8")
    node = helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["x"], axis=1)
    shape = {"q": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero_point": TensorProto.UINT8}
    inputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in shape.items()]
    graph = helper.make_graph([node], "g", inputs, [onnx.ValueInfoProto(name="x")])
    undo = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    feeds = {
        "q": arrays["a"],
        "scale": arrays["a#scale"].ravel(),
        "zero_point": arrays["a#zero_point"].ravel(),
    }
    assert (np.abs(np.asarray(undo.run(None, feeds))[0] - values) <= arrays["a#scale"] * (1 + 1e-6)).all()


def test_a_vector_has_one_scale_an_image() -> None:
    assert reduced(np.ones((3, 7), np.float32), "NC", dtype="uint8")["a#scale"].shape == (3, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_uint8_refuses_what_no_scale_can_hold(value: float) -> None:
    with pytest.raises(OutOfRange, match="float32"):
        reduced(np.full((1, 1, 2, 2), value, np.float32), dtype="uint8")


@pytest.mark.parametrize("largest", [1e41, 1.7e308])
def test_uint8_refuses_what_lies_farther_apart_than_a_scale_reaches(largest: float) -> None:
    with pytest.raises(OutOfRange, match="native"):
        reduced(np.array([-largest, largest]).reshape(1, 1, 1, 2), dtype="uint8")


def test_top_ranks_by_mean_absolute_activation_for_each_image() -> None:
    values = np.zeros((2, 3, 1, 2), np.float32)
    values[0, 2], values[0, 0], values[1, 1] = -5, 1, 3
    arrays = reduced(values, channels=Channels(top=2))
    assert arrays["a#channels"].tolist() == [[2, 0], [1, 0]]
    assert np.array_equal(arrays["a"][0], values[0, [2, 0]])


def test_what_is_not_a_number_ranks_last() -> None:
    values = np.array([[[[np.nan]], [[0.0]], [[1.0]]]], np.float32)
    assert reduced(values, channels=Channels(top=3))["a#channels"].tolist() == [[2, 1, 0]]


def test_pool_passes_a_vector_unchanged() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(reduced(values, "NC", pool="avg")["a"], values)


def test_each_image_has_its_own_window() -> None:
    values = np.arange(2 * 4, dtype=np.float32).reshape(2, 1, 2, 2)
    windows = [Window(0, 0, 1, 1), Window(1, 1, 1, 1)]
    arrays = apply(mapped(values), Reduction(region=Region(0, 0, 1, 1)), windows)
    assert arrays["a"].ravel().tolist() == [0, 7]


@pytest.mark.parametrize(
    ("shape", "layout", "reduction", "error"),
    [
        ((1, 3, 4, 4), "NCHW", Reduction(pool="avg", grid=(2, 2)), NotCombinable),
        ((1, 3), "NC", Reduction(grid=(2, 2)), NotCombinable),
        ((1, 3), "NC", Reduction(region=Region(0, 0, 1, 1)), NotCombinable),
        ((1, 3, 4, 4), None, Reduction(channels=Channels((0,))), NotCombinable),
        ((1, 3, 4, 4), "NCHW", Reduction(channels=Channels((0, 3))), InvalidParameter),
        ((1, 3, 4, 4), "NCHW", Reduction(channels=Channels(top=4)), InvalidParameter),
        ((1, 3, 0, 4), "NCHW", Reduction(pool="max"), NotCombinable),
        ((1, 4, 0, 3), "NHWC", Reduction(pool="avg"), NotCombinable),
        ((1, 3, 0, 4), "NCHW", Reduction(grid=(2, 2)), NotCombinable),
        ((1, 3, 0, 4), "NCHW", Reduction(channels=Channels(top=2)), NotCombinable),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    shape: tuple[int, ...], layout: Layout | None, reduction: Reduction, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check(layer(shape, layout), reduction)


@pytest.mark.parametrize("shape", [(8, 1, 4), (4,), (4, 8, 8)])
def test_top_ranks_nothing_where_the_axis_of_the_images_is_not_known(shape: tuple[int, ...]) -> None:
    """As (W, N, C) of a reader of lines, or what a squeeze left of one image."""
    axis = shape.index(4)
    odd = replace(any_layer("a", 0), shape=shape, layout=None, channel_axis=axis, channels=4, batch_axis=None)
    check(odd, Reduction(channels=Channels((1, 0))))
    with pytest.raises(NotCombinable, match="by their numbers"):
        check(odd, Reduction(channels=Channels(top=2)))


@pytest.mark.parametrize("steps", [{}, {"dtype": "uint8"}, {"channels": Channels((1,))}])
def test_a_map_without_cells_is_given_as_it_is(steps: dict[str, Any]) -> None:
    assert reduced(np.zeros((1, 3, 0, 4), np.float32), **steps)["a"].size == 0
    unknown = replace(layer((1, 3, 4, 4)), shape=None)
    with pytest.raises(NotCombinable, match="no cells"):
        apply(FeatureMap(unknown, np.zeros((1, 3, 0, 4), np.float32)), Reduction(pool="max", **steps), [])


@given(FLOATS)
def test_float16_lies_within_the_stated_bound(values: np.ndarray) -> None:
    bound = error_bound("float32", "float16")
    assert bound is not None
    error = np.abs(cast(layer((1, 1)), values, "float16").astype(np.float64) - values.astype(np.float64))
    assert (error <= np.maximum(bound["relative"] * np.abs(values), bound["absolute"])).all()


def test_the_bound_of_float16_is_half_a_unit_in_the_last_place() -> None:
    assert error_bound("float32", "float16") == {"relative": 2**-11, "absolute": 2**-25}


@pytest.mark.parametrize(
    ("dtype", "choice"), [("float32", "native"), ("float16", "float32"), ("uint8", "float16")]
)
def test_an_exact_cast_has_no_bound(dtype: str, choice: str) -> None:
    assert error_bound(dtype, choice) is None  # type: ignore[arg-type]


def test_native_is_the_very_array() -> None:
    values = np.zeros((1, 1, 2, 2), np.float32)
    assert reduced(values)["a"] is values


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_a_value_beyond_float16_is_refused_and_not_made_infinite(value: float) -> None:
    with pytest.raises(OutOfRange, match="wider"):
        reduced(np.full((1, 1, 1, 1), value, np.float32), dtype="float16")


def test_infinity_and_nan_stay_what_they_are() -> None:
    values = np.array([np.inf, -np.inf, np.nan], np.float32).reshape(1, 3, 1, 1)
    assert np.array_equal(reduced(values, dtype="float16")["a"], values.astype(np.float16), equal_nan=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Channels((0,))),
        ("0..2,32", Channels((0, 1, 2, 32))),
        ("5,1,5", Channels((5, 1))),
        ("top:8", Channels(top=8)),
    ],
)
def test_channels_are_read(text: str, expected: Channels) -> None:
    assert read_channels(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1,",
        "3..1",
        "-1",
        "top:0",
        "top:",
        "top:-3",
        "0..999999",
        "1.5",
        "1...2",
        ",".join(["0..32767"] * 3),
    ],
)
def test_ill_formed_channels_are_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="channels"):
        read_channels(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3,4", Region(1, 2, 3, 4)),
        ("pct:0,0,50,25.5", Region(0, 0, 50, 25.5, True)),
        ("-1,0,5,5", Region(-1, 0, 5, 5)),
    ],
)
def test_a_region_is_read(text: str, expected: Region) -> None:
    assert read_region(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1,2,3", "1,2,3,4,5", "a,b,c,d", "0,0,0,5", "0,0,5,-1", "nan,0,1,1", "0,0,inf,1", "pct:"]
)
def test_an_ill_formed_region_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="region"):
        read_region(text)


@pytest.mark.parametrize("text", ["", "0x0", "7", "7x", "x7", "-1x2", "1x2x3", "10000x1"])
def test_an_ill_formed_grid_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="grid"):
        read_grid(text)


def test_a_grid_is_read() -> None:
    assert read_grid("7x9") == (7, 9)
