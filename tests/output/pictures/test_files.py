"""What stands in the files: exact pixels, a palette, the scale in words; the same bytes every time."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cmap import Colormap

from service.errors import InvalidParameter
from service.output.pictures import Backdrop, Drawn, draw
from service.output.pictures.colormaps import find_colormap, palette
from service.parameters import Drawing, PictureFormat, Style
from service.values import FeatureMap, Picture, Placement
from tests.builders import known
from tests.output.pictures.maps import BLACK, NEUTRAL, NOTHING, feature_map, opened

FORMATS: list[PictureFormat] = ["png", "webp", "jpeg"]
STYLES: list[Style] = ["grid", "channel", "heatmap", "overlay", "pca", "eigencam", "cam"]
VALUES = np.random.default_rng(3).gamma(1.0, 2.0, (9, 14, 14)).astype(np.float32)
PHOTO = np.random.default_rng(4).integers(0, 256, (60, 80, 3), np.uint8)


def drawn(style: Style, kind: PictureFormat, **parameters: Any) -> Drawn:
    behind = Backdrop(Picture.of(PHOTO, "image/png"), Placement((60, 80), (0.9, 0.7), (0.0, 0.0)))
    drawing = Drawing(style=style, format=kind, channel=2 if style == "channel" else None, **parameters)
    return draw(
        feature_map(VALUES),
        drawing,
        backdrop=behind if style == "overlay" else None,
        class_weights=np.linspace(-1, 1, 9) if style == "cam" else None,
    )


def words_of(picture: Drawn) -> dict[str, str]:
    image = opened(picture.body)
    match image.format:
        case "PNG":
            return json.loads(image.info["featuremaps"])
        case "WEBP":
            return json.loads(image.getexif()[0x010E])
    return json.loads(image.info["comment"])


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_in_every_format_opens_and_tells_its_scale(style: Style, kind: PictureFormat) -> None:
    picture = drawn(style, kind)
    assert opened(picture.body).format == kind.upper()
    assert picture.media_type == f"image/{kind}"
    assert words_of(picture) == picture.scale
    assert picture.scale["style"] == style
    assert all(f"{key}{value}".isascii() for key, value in picture.scale.items())


@pytest.mark.parametrize("style", ["grid", "channel", "heatmap", "eigencam", "cam"])
def test_a_png_keeps_the_palette_and_one_byte_a_pixel(style: Style) -> None:
    image = opened(drawn(style, "png").body)
    assert image.mode == "P"
    assert np.array_equal(np.reshape(known(image.getpalette()), (256, 3)), palette("bids:inferno"))


@pytest.mark.parametrize("style", ["grid", "channel", "heatmap", "eigencam", "cam"])
def test_webp_holds_exactly_the_pixels_of_the_png(style: Style) -> None:
    png, webp = (np.asarray(opened(drawn(style, kind).body).convert("RGB")) for kind in ("png", "webp"))
    assert np.array_equal(png, webp)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_other_formats_look_like_the_png(kind: PictureFormat) -> None:
    png, other = (np.asarray(opened(drawn("heatmap", k).body).convert("RGB")) for k in ("png", kind))
    # JPEG at quality 90 smears the borders of cells.
    assert np.abs(png.astype(int) - other).mean() < 4


def test_a_value_is_found_again_from_the_level_and_the_words() -> None:
    picture = drawn("channel", "png", scale=1)
    levels = np.asarray(opened(picture.body))
    low, high = float(picture.scale["vmin"]), float(picture.scale["vmax"])
    values = low + levels / 254 * (high - low)
    assert np.abs(values - VALUES[2]).max() <= (high - low) / 254 / 2 * 1.001


def test_png_names_the_limits_by_themselves() -> None:
    text = opened(drawn("grid", "png").body).info
    assert np.float32(text["vmax"]) == VALUES.max()
    assert text["vmin"] == "0"


def test_a_layers_name_cannot_break_the_words() -> None:
    cells = feature_map(VALUES)
    for name in ("/a:0\r\nX: ü", "x" * 10_000, "\ud800"):
        renamed = FeatureMap(replace(cells.layer, name=name), cells.values)
        scale = draw(renamed, Drawing()).scale
        assert scale["layer"].isascii()
        assert scale["layer"].isprintable()
        assert len(json.dumps(dict(scale))) < 4096


def test_a_map_without_limits_in_common_says_so() -> None:
    assert drawn("grid", "png", normalize="channel").scale["vmax"] == "max of channel"


def digests() -> str:
    bodies = [drawn(style, kind).body for style in STYLES for kind in FORMATS]
    return " ".join(hashlib.sha256(body).hexdigest()[:16] for body in bodies)


def test_the_same_map_gives_the_same_bytes_in_another_process() -> None:
    root = Path(__file__).parents[3]
    command = "from tests.output.pictures import test_files; print(test_files.digests())"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == digests()


@pytest.mark.parametrize("name", ["bids:inferno", "bids:magma", "matlab:gray"])
def test_a_nearly_black_start_is_black(name: str) -> None:
    assert tuple(palette(name)[0]) == BLACK


def test_the_default_palettes_have_a_black_zero_a_neutral_zero_and_a_color_for_nothing() -> None:
    assert tuple(palette("colorbrewer:rdbu_r")[127]) == NEUTRAL
    for name in ("bids:inferno", "colorbrewer:rdbu_r"):
        assert tuple(palette(name)[255]) == NOTHING
        assert NOTHING not in map(tuple, palette(name)[:255])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("inferno", "bids:inferno"),
        ("VIRIDIS", "bids:viridis"),
        ("viridis_r", "bids:viridis_r"),
        ("colorcet:CET_D1", "colorcet:cet_d1"),
    ],
)
def test_a_colormap_is_found_by_its_short_and_its_full_name(given: str, found: str) -> None:
    assert find_colormap(given) == found


def test_a_reversed_colormap_is_the_same_backwards() -> None:
    backwards = palette("bids:viridis")[254::-1].astype(int)
    # Halves are rounded from the other side.
    assert np.abs(palette("bids:viridis_r")[:255] - backwards).max() <= 1


@pytest.mark.parametrize(
    "name",
    ["", "#ff0000", "rgb(1,2,3)", "/etc/passwd", "http://a/b", "inferno\n", "x" * 100_000, "ñ", "_r"],
)
def test_what_is_no_name_in_the_catalogue_never_reaches_the_library(name: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        find_colormap(name)
    assert refused.value.extensions["parameter"] == "colormap"
    assert len(refused.value.detail) < 300


def test_a_misspelt_colormap_is_answered_with_near_names() -> None:
    with pytest.raises(InvalidParameter, match="'viridis'") as refused:
        find_colormap("viridsi")
    assert "viridis" in refused.value.extensions["suggestions"]


def test_every_colormap_of_the_catalogue_makes_a_palette() -> None:
    for name in Colormap.catalog().unique_keys(prefer_short_names=False):
        assert palette.__wrapped__(find_colormap(name)).shape == (256, 3)


def test_the_chosen_colormap_is_drawn_and_named() -> None:
    picture = draw(feature_map(np.array([[[0.0, 1.0]]])), Drawing(colormap="viridis", scale=1))
    assert np.asarray(opened(picture.body).convert("RGB")).tolist() == [[[68, 1, 84], [253, 231, 37]]]
    assert picture.scale["colormap"] == "bids:viridis"
