"""Everything is either a picture of the predicted size or a refusal of ours, mostly before anything runs."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InvalidParameter, NotCombinable, NotDrawable, RequestError
from service.output.pictures import Backdrop, check, draw, working_bytes
from service.output.pictures.checks import mosaic_of
from service.parameters import Drawing, Style
from service.values import FeatureMap, Layer, Layout, Picture, Placement
from tests.output.pictures.maps import feature_map, layer, opened

STYLES: list[Style] = ["grid", "channel", "heatmap", "overlay", "pca", "eigencam", "cam"]
FIXED = {"normalize": "fixed", "vmin": 0.0, "vmax": 1.0}
NAN = float("nan")


@pytest.mark.parametrize("style", STYLES)
def test_a_layer_with_known_layout_and_geometry_passes_in_every_style(style: Style) -> None:
    check(layer(), Drawing(style=style, channel=1 if style == "channel" else None))


@pytest.mark.parametrize("shape", [None, (1, None, None, None), (None, 3, None, None)])
def test_what_is_not_known_beforehand_is_not_refused(shape: tuple[int | None, ...] | None) -> None:
    check(layer(shape), Drawing())


@pytest.mark.parametrize(
    ("subject", "says"),
    [
        (layer((1, 9), None), "not known which axes"),
        (layer((1, 3, 4, 5), None), "not known which axes"),
        (layer((1, 3, 4), "NCHW"), "3 axes and not 4"),
        (layer((1, 3, 4, 5), "NC"), "4 axes and not 2"),
        (layer(dtype="str"), "holds str"),
        (layer(dtype="bfloat16"), "holds bfloat16"),
        (layer(dtype=""), "holds no tensor"),
        (layer((1, 3, 0, 5)), "empty"),
    ],
)
def test_a_layer_that_is_no_map_is_refused_with_the_reason(subject: Layer, says: str) -> None:
    with pytest.raises(NotDrawable, match=says):
        check(subject, Drawing())


@pytest.mark.parametrize("style", [style for style in STYLES if style != "grid"])
def test_a_vector_is_drawn_as_bars_only(style: Style) -> None:
    with pytest.raises(NotDrawable, match="style=grid"):
        check(layer((1, 10), "NC"), Drawing(style=style))


@pytest.mark.parametrize("facts", [{"reduction": None}, {"centre": None}, {"reduction": 0}])
def test_an_overlay_needs_to_know_where_cells_lie(facts: dict[str, Any]) -> None:
    with pytest.raises(NotDrawable, match="not known where"):
        check(layer(**facts), Drawing(style="overlay"))
    check(layer(**facts), Drawing(style="heatmap"))


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"colormap": "infrno"}, "colormap"),
        ({"style": "channel"}, "channel"),
        ({"style": "channel", "channel": 2}, "channel"),
        ({"style": "channel", "channel": -1}, "channel"),
        ({"columns": 0}, "columns"),
        ({"columns": 10**400}, "columns"),
        ({"scale": 0}, "scale"),
        ({"scale": 2000}, "scale"),
        ({"image_weight": 1.5}, "image_weight"),
        ({"image_weight": NAN}, "image_weight"),
        ({"clip": -1.0}, "clip"),
        ({"clip": 100.0}, "clip"),
        ({"clip": NAN}, "clip"),
        ({"normalize": "fixed"}, "vmin"),
        ({"normalize": "fixed", "vmin": 0.0}, "vmax"),
        ({**FIXED, "vmin": 1.0}, "vmin"),
        ({**FIXED, "vmin": NAN}, "vmin"),
        ({**FIXED, "vmax": float("inf")}, "vmax"),
        ({**FIXED, "vmax": 1e39}, "vmax"),
    ],
)
def test_a_parameter_out_of_bounds_is_refused_by_name(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidParameter, match=parameter) as refused:
        check(layer(), Drawing(**parameters))
    assert refused.value.extensions["parameter"] == parameter


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"channel": 1}, "channel"),
        ({"target": 1}, "target"),
        ({"style": "heatmap", "columns": 2}, "columns"),
        ({"style": "overlay", "scale": 2}, "scale"),
        ({"style": "pca", "colormap": "gray"}, "colormap"),
        ({"style": "pca", "normalize": "channel"}, "normalize"),
        ({"style": "pca", "clip": 1.0}, "clip"),
        ({**FIXED, "clip": 1.0}, "clip"),
        ({"vmin": 0.0}, "vmin"),
        ({"vmax": 0.0, "normalize": "channel"}, "vmax"),
    ],
)
def test_a_parameter_that_would_change_nothing_is_refused(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(NotCombinable) as refused:
        check(layer(), Drawing(**parameters))
    assert refused.value.extensions["parameter"] == parameter


@pytest.mark.parametrize(
    ("subject", "parameters"),
    [
        (layer((1, 64, 512, 512)), {}),
        (layer((1, 3, 100, 100)), {"style": "heatmap", "scale": 41}),
        (layer((1, 200_000), "NC"), {"scale": 16}),
    ],
)
def test_a_picture_that_would_be_too_large_is_refused_with_its_size(
    subject: Layer, parameters: dict[str, Any]
) -> None:
    with pytest.raises(NotDrawable) as refused:
        check(subject, Drawing(**parameters))
    assert refused.value.extensions["actual"] > refused.value.extensions["limit"] == 16_000_000


def test_a_side_that_the_format_cannot_hold_is_refused() -> None:
    long = layer((1, 2048, 7, 7))
    check(long, Drawing(columns=1, scale=2))
    with pytest.raises(NotDrawable, match="format=png") as refused:
        check(long, Drawing(columns=1, scale=2, format="webp"))
    assert refused.value.extensions == {"limit": 16383, "actual": 2048 * 15 - 1}


@pytest.mark.parametrize("shape", [(1, 4096, 64, 64), (1, 2000, 500, 500)])
def test_components_that_would_take_too_long_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotDrawable, match="too large for components"):
        check(layer(shape), Drawing(style="eigencam"))


def test_what_is_drawn_counts_and_not_what_the_layer_could_hold() -> None:
    """Two channels were selected of many."""
    cells = feature_map(np.ones((2, 8, 8), np.float32))
    selected = FeatureMap(replace(cells.layer, shape=(1, 64, 800, 800), channels=64), cells.values)
    assert opened(draw(selected, Drawing(scale=1)).body).size == (17, 8)
    with pytest.raises(InvalidParameter, match="0 to 1"):
        draw(selected, Drawing(style="channel", channel=5))


def test_several_images_are_not_one_picture() -> None:
    with pytest.raises(NotDrawable, match="one image"):
        draw(FeatureMap(layer((2, 1, 3, 3)), np.zeros((2, 1, 3, 3), np.float32)), Drawing())


def test_text_is_refused_where_the_layer_does_not_say_so() -> None:
    with pytest.raises(NotDrawable, match="not numbers"):
        draw(FeatureMap(layer((1, 1), "NC"), np.array([["cat"]])), Drawing())


NUMBERS = st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -1.0, 1.0, 3e38, -3e38, 5e-324]))
VALUES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=5).flatmap(
    lambda shape: hnp.arrays("float32", shape, elements=st.floats(width=32))
)
DRAWINGS = st.builds(
    Drawing,
    style=st.sampled_from(STYLES),
    channel=st.one_of(st.none(), st.integers(-1, 5)),
    combine=st.sampled_from(["mean", "max", "norm"]),
    normalize=st.sampled_from(["layer", "channel", "fixed"]),
    vmin=NUMBERS,
    vmax=NUMBERS,
    clip=st.one_of(st.just(0.0), st.floats(0, 99), st.floats()),
    colormap=st.one_of(st.none(), st.sampled_from(["viridis", "tab10", "RdBu_r"]), st.just("nonsense")),
    columns=st.one_of(st.none(), st.integers(0, 6)),
    scale=st.one_of(st.none(), st.integers(0, 4)),
    image_weight=st.one_of(st.just(0.5), st.floats(0, 1), st.floats()),
    format=st.sampled_from(["png", "webp", "jpeg"]),
)
BACKDROP = Backdrop(
    Picture.of(np.full((9, 12, 3), 128, np.uint8), "image/png"), Placement((9, 12), (1.3, 0.8), (-2.0, 0.5))
)


def usable(drawing: Drawing) -> Drawing:
    """The same without what its style or scale has no use for: most drawings would else be refused."""
    fixed = drawing.normalize == "fixed" and drawing.style != "pca"
    return replace(
        drawing,
        channel=(drawing.channel or 0) if drawing.style == "channel" else None,
        columns=drawing.columns if drawing.style == "grid" else None,
        scale=None if drawing.style == "overlay" else drawing.scale or 2,
        colormap=None if drawing.style == "pca" else drawing.colormap,
        normalize="layer" if drawing.style == "pca" else drawing.normalize,
        clip=0.0 if fixed or drawing.style == "pca" else drawing.clip,
        vmin=drawing.vmin if fixed else None,
        vmax=drawing.vmax if fixed else None,
    )


@settings(deadline=None, max_examples=300)
@given(VALUES, DRAWINGS, st.sampled_from(["NCHW", "NHWC"]), st.booleans(), st.booleans())
def test_any_map_and_any_drawing_give_a_picture_or_a_refusal(
    values: np.ndarray, drawing: Drawing, layout: Layout, sensible: bool, after_activation: bool
) -> None:
    drawing = usable(drawing) if sensible else drawing
    if layout == "NHWC":
        values = np.moveaxis(values, 0, -1)
    cells = feature_map(values, layout, after_activation=after_activation)
    channels = values.shape[-1 if layout == "NHWC" else 0]
    weights = np.linspace(-1, 1, channels) if drawing.style == "cam" else None
    overlaid = drawing.style == "overlay"
    try:
        drawn = draw(cells, drawing, backdrop=BACKDROP if overlaid else None, class_weights=weights)
    except RequestError:
        return
    height, width = BACKDROP.placement.photo
    if not overlaid:
        space = values.shape[:2] if layout == "NHWC" else values.shape[1:]
        height, width = mosaic_of((channels, *space), drawing).size
    assert opened(drawn.body).size == (width, height)


@settings(deadline=None)
@given(hnp.arrays("float32", st.integers(1, 40), elements=st.floats(width=32)), DRAWINGS)
def test_any_vector_gives_a_picture_or_a_refusal(values: np.ndarray, drawing: Drawing) -> None:
    drawing = usable(replace(drawing, style="grid"))
    try:
        drawn = draw(feature_map(values, "NC"), drawing)
    except RequestError:
        return
    height, width = mosaic_of(values.shape, drawing).size
    assert opened(drawn.body).size == (width, height)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8"])
@pytest.mark.parametrize("size", [(16, 128, 128), (1, 512, 512), (2048, 8, 8)])
@pytest.mark.parametrize(
    "style",
    [
        {"style": "grid", "clip": 1.0},
        {"style": "grid", "normalize": "channel"},
        {"style": "channel", "channel": 0, "clip": 1.0},
        {"style": "heatmap"},
        {"style": "heatmap", "combine": "norm", "clip": 1.0},
        {"style": "pca"},
        {"style": "eigencam"},
        {"style": "cam", "target": 0, "clip": 1.0},
    ],
)
def test_a_drawing_holds_no_more_than_it_was_said_to(
    style: dict[str, Any], size: tuple[int, ...], dtype: str
) -> None:
    """Beside the map and the picture, as indices, in colour and as a file; some pages are Python's own."""
    values = np.random.default_rng(0).integers(0, 200, size).astype(dtype)
    if dtype != "uint8":
        values.flat[:2] = NAN, np.inf
    subject, drawing = feature_map(values), Drawing(**style, scale=1)
    height, width = mosaic_of(size, drawing).size
    weights = np.ones(size[0], np.float32)
    draw(subject, drawing, class_weights=weights)  # colormaps are read once
    tracemalloc.start()
    try:
        draw(subject, drawing, class_weights=weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= working_bytes(subject.layer, drawing) + 7 * height * width + 500_000


def test_nobody_says_what_a_drawing_of_an_unknown_shape_holds() -> None:
    assert working_bytes(layer(None), Drawing()) == working_bytes(layer((1, 2, None, 3)), Drawing()) == 0
