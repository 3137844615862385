"""The oracle is torchvision's arithmetic on PIL images, the long side rounded instead of truncated."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ShapeMismatch
from service.intake.preprocess import preprocess
from service.values import Picture, Placement, Preprocessing, TensorSpec

IMAGENET = Preprocessing(
    size=(224, 224),
    fit="crop",
    resize=256,
    pad_value=114,
    pad_at="centre",
    interpolation="bilinear",
    color="rgb",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    source="model.toml",
)
RAW = replace(IMAGENET, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
RAW_GRAY = replace(RAW, mean=(0.0,), std=(1.0,))
ANY = TensorSpec("input", "float32", (None, None, None, None), "NCHW")
BYTES = replace(ANY, dtype="uint8", layout="NHWC")
SEVERAL = settings(max_examples=150, deadline=None)
SIDES = st.integers(1, 300)
BILINEAR = Image.Resampling.BILINEAR
FILTERS = ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


def picture(height: int, width: int) -> Picture:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)
    return Picture.of(pixels, "image/png")


def seen(photo: Picture, recipe: Preprocessing) -> npt.NDArray[np.uint8]:
    """(H, W, C) of an input that takes the pixels as they are."""
    pixels: npt.NDArray[np.uint8] = preprocess(photo, recipe, BYTES).tensor[0]
    return pixels


def torchvision_resize_and_crop(
    photo: Picture, short: int, size: tuple[int, int], interpolation: Image.Resampling = BILINEAR
) -> npt.NDArray[np.uint8]:
    """`Resize(short)`, but for the rounding of the long side, and `CenterCrop(size)` of torchvision."""
    image = Image.fromarray(photo.pixels)
    w, h = image.size
    smaller, longer = (w, h) if w <= h else (h, w)
    new_short, new_long = short, round(short * longer / smaller)
    new_w, new_h = (new_short, new_long) if w <= h else (new_long, new_short)
    image = image.resize((new_w, new_h), interpolation)
    crop_h, crop_w = size
    if crop_w > new_w or crop_h > new_h:
        left = (crop_w - new_w) // 2 if crop_w > new_w else 0
        top = (crop_h - new_h) // 2 if crop_h > new_h else 0
        right = (crop_w - new_w + 1) // 2 if crop_w > new_w else 0
        bottom = (crop_h - new_h + 1) // 2 if crop_h > new_h else 0
        padded = Image.new("RGB", (left + new_w + right, top + new_h + bottom))
        padded.paste(image, (left, top))
        image = padded
    top = round((image.height - crop_h) / 2.0)
    left = round((image.width - crop_w) / 2.0)
    return np.asarray(image.crop((left, top, left + crop_w, top + crop_h)))


# Pixels


@SEVERAL
@given(SIDES, SIDES, st.integers(20, 90), st.integers(1, 90), st.integers(1, 90), st.sampled_from(FILTERS))
def test_resize_and_crop_are_those_of_torchvision(
    h: int, w: int, short: int, rows: int, columns: int, interpolation: Any
) -> None:
    recipe = replace(RAW, resize=short, size=(rows, columns), interpolation=interpolation)
    filter_ = Image.Resampling[interpolation.upper()]
    expected = torchvision_resize_and_crop(picture(h, w), short, (rows, columns), filter_)
    assert np.array_equal(seen(picture(h, w), recipe), expected)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_stretch_is_pillows_resize(interpolation: Any) -> None:
    recipe = replace(RAW, fit="stretch", resize=None, size=(33, 44), interpolation=interpolation)
    image = Image.fromarray(picture(90, 70).pixels)
    expected = image.resize((44, 33), Image.Resampling[interpolation.upper()])
    assert np.array_equal(seen(picture(90, 70), recipe), np.asarray(expected))


def test_a_picture_of_the_right_size_is_not_resampled() -> None:
    recipe = replace(RAW, fit="stretch", resize=None, size=(50, 60))
    assert np.array_equal(seen(picture(50, 60), recipe), picture(50, 60).pixels)


@SEVERAL
@given(SIDES, SIDES, st.integers(1, 64), st.integers(1, 64))
def test_crop_without_resize_covers_the_input_with_photograph(
    h: int, w: int, rows: int, columns: int
) -> None:
    white = Picture.of(np.full((h, w, 3), 255, np.uint8), "image/png")
    assert seen(white, replace(RAW, resize=None, size=(rows, columns))).min() == 255


@SEVERAL
@given(SIDES, SIDES, st.sampled_from(["centre", "top-left"]))
def test_letterbox_is_yolox_with_the_padding_where_asked(h: int, w: int, pad_at: Any) -> None:
    ratio = min(48 / h, 64 / w)
    new_h, new_w = max(1, int(h * ratio)), max(1, int(w * ratio))
    resized = Image.fromarray(picture(h, w).pixels).resize((new_w, new_h), Image.Resampling.BILINEAR)
    expected = np.full((48, 64, 3), 114, np.uint8)
    top, left = ((48 - new_h) // 2, (64 - new_w) // 2) if pad_at == "centre" else (0, 0)
    expected[top : top + new_h, left : left + new_w] = np.asarray(resized)
    recipe = replace(RAW, fit="letterbox", resize=None, size=(48, 64), pad_at=pad_at)
    assert np.array_equal(seen(picture(h, w), recipe), expected)


def test_where_the_photograph_falls_short_of_the_crop_there_is_black() -> None:
    white = Picture.of(np.full((10, 10, 3), 255, np.uint8), "image/png")
    corner = seen(white, replace(RAW, resize=16, size=(32, 32)))
    assert (corner[7, 16, 0], corner[8, 16, 0], corner[23, 16, 0], corner[24, 16, 0]) == (0, 255, 255, 0)


# Colours


def test_gray_is_the_luma_of_itu_r_601() -> None:
    recipe = replace(RAW_GRAY, fit="stretch", resize=None, size=(20, 30), color="gray")
    red, green, blue = np.moveaxis(picture(20, 30).pixels.astype(int), -1, 0)
    expected = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    assert np.array_equal(seen(picture(20, 30), recipe)[..., 0], expected)


def test_y_is_the_luma_of_jfif() -> None:
    recipe = replace(RAW_GRAY, fit="stretch", resize=None, size=(20, 30), color="y")
    expected = picture(20, 30).pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(seen(picture(20, 30), recipe)[..., 0] - expected).max() <= 1


def test_bgr_is_rgb_backwards() -> None:
    assert np.array_equal(
        seen(picture(40, 50), replace(RAW, color="bgr")), seen(picture(40, 50), RAW)[..., ::-1]
    )


# Numbers and layout


def test_numbers_are_the_formula_in_float64_rounded_once() -> None:
    pixels = torchvision_resize_and_crop(picture(300, 400), 256, (224, 224)).astype(np.float64)
    exact = (pixels * IMAGENET.scale - IMAGENET.mean) / np.array(IMAGENET.std)
    tensor = preprocess(picture(300, 400), IMAGENET, ANY).tensor
    assert np.array_equal(tensor[0], np.moveaxis(exact, -1, 0).astype(np.float32))


def test_numbers_are_those_of_torchvision_but_for_the_last_bits() -> None:
    """`to_tensor` divides by 255 and `normalize` subtracts and divides, each rounding to float32."""
    pixels = torchvision_resize_and_crop(picture(300, 400), 256, (224, 224)).astype(np.float32)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET.mean, IMAGENET.std))
    expected = np.moveaxis((pixels / np.float32(255) - mean) / std, -1, 0)
    tensor = preprocess(picture(300, 400), IMAGENET, ANY).tensor[0]
    # Three roundings of numbers below 1, magnified by 1 / 0.224.
    assert np.abs(tensor - expected).max() <= 3 * 2.0**-24 / 0.224


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_layouts_hold_the_same_numbers_and_the_dtype_is_the_models(dtype: str) -> None:
    first = preprocess(picture(30, 40), IMAGENET, replace(ANY, dtype=dtype)).tensor
    last = preprocess(picture(30, 40), IMAGENET, replace(ANY, dtype=dtype, layout="NHWC")).tensor
    assert (first.shape, last.shape, first.dtype) == ((1, 3, 224, 224), (1, 224, 224, 3), np.dtype(dtype))
    assert np.array_equal(first, np.moveaxis(last, -1, 1))
    assert first.flags.c_contiguous
    assert last.flags.c_contiguous


def test_a_gray_input_has_one_channel() -> None:
    recipe = replace(RAW_GRAY, color="gray")
    assert preprocess(picture(30, 40), recipe, ANY).tensor.shape == (1, 1, 224, 224)


def test_a_uint8_input_is_rounded_and_clipped() -> None:
    pixels = np.array([[[0, 10, 200]]], np.uint8)
    recipe = replace(RAW, fit="stretch", resize=None, size=(1, 1), scale=1.25, mean=(5.0,) * 3)
    tensor = preprocess(Picture.of(pixels, "image/png"), recipe, BYTES).tensor
    assert tensor.ravel().tolist() == [0, 8, 245]


def test_a_number_beyond_float16_is_infinite_without_a_warning() -> None:
    recipe = replace(RAW, scale=1e6)
    assert np.isinf(preprocess(picture(9, 9), recipe, replace(ANY, dtype="float16")).tensor).any()


def test_each_call_makes_a_tensor_of_its_own() -> None:
    first, second = (preprocess(picture(9, 9), IMAGENET, ANY).tensor for _ in range(2))
    first[:] = 0
    assert np.abs(second).max() > 0


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "string", "bfloat16"])
def test_dtypes_that_pixels_do_not_become_are_refused(dtype: str) -> None:
    with pytest.raises(ShapeMismatch, match=rf"dtype {dtype}.*float32, float16, float64, uint8"):
        preprocess(picture(9, 9), IMAGENET, replace(ANY, dtype=dtype))


@pytest.mark.parametrize("layout", ["NC", None])
def test_inputs_that_are_no_images_are_refused(layout: Any) -> None:
    with pytest.raises(ShapeMismatch, match="ready tensor"):
        preprocess(picture(9, 9), IMAGENET, replace(ANY, layout=layout))


@pytest.mark.parametrize("shape", [(1, 1, 224, 224), (1, 3, 224, 225), (None, 3, 224, 224, 1)])
def test_a_recipe_that_does_not_fit_the_graph_is_refused_with_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(1, 3, 224, 224\)") as refusal:
        preprocess(picture(9, 9), IMAGENET, replace(ANY, shape=shape))
    assert refusal.value.extensions == {"given": [1, 3, 224, 224], "allowed": list(shape)}


# Placement


RECIPES = st.builds(
    replace,
    st.just(RAW),
    size=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    fit=st.sampled_from(["crop", "stretch", "letterbox"]),
    resize=st.none() | st.integers(80, 120),
    pad_at=st.sampled_from(["centre", "top-left"]),
)


def mapped(placement: Placement, y: float, x: float) -> tuple[float, float]:
    (scale_y, scale_x), (offset_y, offset_x) = placement.scale, placement.offset
    return y * scale_y + offset_y, x * scale_x + offset_x


@SEVERAL
@given(SIDES, SIDES, RECIPES)
def test_the_photographs_edges_lie_on_whole_pixels(h: int, w: int, recipe: Preprocessing) -> None:
    (placement,) = preprocess(picture(h, w), recipe, ANY).placements
    for corner in (mapped(placement, 0, 0), mapped(placement, h, w)):
        assert corner == pytest.approx([round(value) for value in corner], abs=1e-9)
    assert placement.photo == (h, w)


@SEVERAL
@given(SIDES, SIDES, RECIPES)
def test_the_photograph_fills_a_crop_and_fits_into_a_letterbox(h: int, w: int, recipe: Preprocessing) -> None:
    (placement,) = preprocess(picture(h, w), recipe, ANY).placements
    corners = [*mapped(placement, 0, 0), *mapped(placement, h, w)]
    edges = np.array([0, 0, *recipe.size]) - corners
    inside = {"crop": edges * [1, 1, -1, -1] >= -1e-9, "letterbox": edges * [-1, -1, 1, 1] >= -1e-9}
    assert inside.get(recipe.fit, np.abs(edges) < 1e-9).all()


@SEVERAL
@given(SIDES, SIDES, RECIPES)
def test_a_crop_is_centred_to_within_a_pixel(h: int, w: int, recipe: Preprocessing) -> None:
    (placement,) = preprocess(picture(h, w), replace(recipe, fit="crop"), ANY).placements
    middle = mapped(placement, h / 2, w / 2)
    assert middle == pytest.approx((recipe.size[0] / 2, recipe.size[1] / 2), abs=0.5 + 1e-9)


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(240, 360), (360, 240)])
def test_a_mark_on_the_photograph_is_found_where_the_placement_says(fit: Any, shape: tuple[int, int]) -> None:
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[100:110, 150:160] = 255
    recipe = replace(RAW, fit=fit, pad_value=0, size=(96, 96), resize=100)
    tensor, (placement,) = (lambda ready: (ready.tensor[0, 0], ready.placements))(
        preprocess(Picture.of(pixels, "image/png"), recipe, ANY)
    )
    y, x = np.mgrid[:96, :96] + 0.5
    centre = (np.sum(y * tensor) / tensor.sum(), np.sum(x * tensor) / tensor.sum())
    assert centre == pytest.approx(mapped(placement, 105, 155), abs=0.1)


@SEVERAL
@given(SIDES, SIDES, RECIPES)
def test_what_is_seen_of_a_photograph_is_seen_again_unchanged(h: int, w: int, recipe: Preprocessing) -> None:
    once = seen(picture(h, w), recipe)
    again = replace(recipe, resize=None)
    assert np.array_equal(seen(Picture.of(once, "image/png"), again), once)


# Extremes


@pytest.mark.parametrize("fit", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (1, 50_000), (2, 3)])
def test_extreme_shapes_give_a_full_input(fit: Any, shape: tuple[int, int]) -> None:
    gray = Picture.of(np.full((*shape, 3), 99, np.uint8), "image/png")
    tensor = preprocess(gray, replace(RAW, fit=fit, pad_value=99), ANY).tensor
    assert (tensor.shape, tensor.min(), tensor.max()) == ((1, 3, 224, 224), 99, 99)


LINE = """
from dataclasses import replace
from pathlib import Path
import numpy as np
from service.intake.preprocess import preprocess
from service.values import Picture, Preprocessing, TensorSpec
numbers = {"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3, "source": "default"}
recipe = Preprocessing((224, 224), "crop", 256, 99, "centre", "lanczos", "rgb", **numbers)
spec = TensorSpec("input", "uint8", (1, 224, 224, 3), "NHWC")
for shape in ((10_000_000, 1, 3), (1, 10_000_000, 3)):
    line = Picture.of(np.full(shape, 99, np.uint8), "image/png")
    for fit in ("crop", "stretch", "letterbox"):
        for interpolation in ("nearest", "lanczos"):
            changed = replace(recipe, fit=fit, interpolation=interpolation)
            assert (preprocess(line, changed, spec).tensor == 99).all()
status = Path("/proc/self/status").read_text()
print([line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")][0])
"""


def test_a_line_of_millions_of_pixels_is_no_burden() -> None:
    """Pillow's weights for it would take 0.5 GB, and its short side brought to 256 terabytes."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", LINE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 250 * 2**20


def test_a_strip_too_long_to_resize_whole_is_cut_first_with_the_same_pixels_but_for_two_levels() -> None:
    """256 by 102400 is more than 16 megapixels; the oracle resizes the middle alone, with some around."""
    ramp = np.broadcast_to(np.arange(4000, dtype=np.uint32)[:, None] % 251, (4000, 10))
    strip = Picture.of(np.repeat(ramp[..., None], 3, -1).astype(np.uint8), "image/png")
    whole = Image.fromarray(strip.pixels[1900:2100]).resize((256, 5120), Image.Resampling.BILINEAR)
    top = round((102400 - 224) / 2.0) - 1900 * 256 // 10
    expected = np.asarray(whole)[top : top + 224, 16:240].astype(int)
    assert np.abs(seen(strip, RAW) - expected).max() <= 2
