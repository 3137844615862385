"""From every mode to sRGB; what is expected are formulas or Pillow's own conversion."""

import struct

import numpy as np
import pytest
from PIL import Image

from service.intake import color
from tests.intake.pictures import (
    LOSSLESS,
    by_pillow,
    chunk,
    encode,
    icc,
    over_white,
    photo,
    plain,
    png,
    profile,
    srgb_profile,
    xyz,
)

# Modes


def test_sixteen_bit_gray_is_scaled_and_rounded_not_clipped() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(deep / 65535 * 255).astype(np.uint8)
    for body in (encode(deep, "PNG"), encode(deep, "TIFF"), png(16, 0, deep.astype(">u2"))):
        assert np.array_equal(plain(body).pixels, np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize(("top", "white"), [(1.0, 1.0), (200.0, 255.0), (60000.0, 65535.0)])
def test_float_gray_is_scaled_from_the_smallest_range_that_holds_it(top: float, white: float) -> None:
    deep = np.linspace(0, top, 600, dtype=np.float32).reshape(20, 30)
    expected = np.rint(deep.astype(np.float64) * (255 / white)).astype(np.uint8)
    assert np.array_equal(plain(encode(deep, "TIFF")).pixels[..., 1], expected)


def test_float_gray_of_any_range_goes_from_black_to_white_and_nan_is_black() -> None:
    deep = np.array([[-5, 0, 5, np.nan, np.inf]], np.float32)
    assert plain(encode(deep, "TIFF")).pixels[0, :, 0].tolist() == [0, 128, 255, 0, 255]


def test_a_float_picture_of_one_value_and_one_of_none_decode() -> None:
    for value in (7e9, np.nan):
        assert plain(encode(np.full((3, 4), value, np.float32), "TIFF")).pixels.max() == 0


def test_integer_gray_of_32_bits_is_scaled() -> None:
    deep = np.array([[-1000, 0, 1000]], np.int32)
    assert plain(encode(deep, "TIFF")).pixels[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_colour_is_cut_to_eight_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 12), np.uint16)
    body = png(16, 2, deep.astype(">u2"))
    assert np.array_equal(plain(body).pixels, (deep >> 8).reshape(8, 4, 3).astype(np.uint8))


def test_one_bit_is_black_and_white() -> None:
    bits = np.eye(8, dtype=bool)
    assert np.array_equal(plain(encode(Image.fromarray(bits), "PNG")).pixels[..., 2], bits * np.uint8(255))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr"])
def test_other_modes_are_as_pillow_converts_them(mode: str) -> None:
    body = encode(Image.fromarray(photo()).convert(mode), "JPEG" if mode == "YCbCr" else "TIFF")
    assert np.array_equal(plain(body).pixels, by_pillow(body))


def test_an_adobe_cmyk_jpeg_is_not_a_negative() -> None:
    body = encode(Image.new("RGB", (16, 16), (250, 20, 30)).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(plain(body).pixels.astype(int) - (250, 20, 30)).max() < 8


def test_lab_becomes_the_colour_it_names() -> None:
    body = encode(Image.new("RGB", (4, 4), (200, 60, 90)).convert("LAB"), "TIFF")
    assert np.abs(plain(body).pixels.astype(int) - (200, 60, 90)).max() <= 4


# Transparency


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(form: str) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (50, 60, 4), np.uint8)
    body = encode(rgba, form, **LOSSLESS[form] | ({"exact": True} if form == "WEBP" else {}))
    assert np.array_equal(plain(body).pixels, over_white(rgba))


def test_opaque_alpha_changes_nothing() -> None:
    rgba = np.dstack([photo(), np.full((40, 60), 255, np.uint8)])
    assert np.array_equal(plain(encode(rgba, "PNG")).pixels, photo())


def test_gray_with_alpha_is_composited_on_white() -> None:
    la = np.random.default_rng(0).integers(0, 256, (9, 11, 2), np.uint8)
    rgba = np.dstack([la[..., :1]] * 3 + [la[..., 1:]])
    assert np.array_equal(plain(encode(Image.fromarray(la, "LA"), "PNG")).pixels, over_white(rgba))


@pytest.mark.parametrize(("transparency", "alphas"), [(1, (255, 0, 255)), (b"\xff\x00\x80", (255, 0, 128))])
def test_a_transparent_palette_is_composited_on_white(
    transparency: int | bytes, alphas: tuple[int, ...]
) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    seen = plain(encode(image, "PNG", transparency=transparency)).pixels[0]
    colors = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    assert np.array_equal(seen, over_white(np.dstack([colors[None], [alphas]]).astype(np.uint8))[0])


def test_the_transparent_part_of_a_gif_is_white() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert plain(encode(image, "GIF", transparency=1)).pixels[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize(("depth", "row", "key", "seen"), [(2, 0b00011011, 1, 85), (4, 0x3C, 3, 51)])
def test_the_colour_key_of_shallow_gray_hides_that_gray_only(
    depth: int, row: int, key: int, seen: int
) -> None:
    body = png(depth, 0, np.array([[row]], np.uint8), chunk(b"tRNS", struct.pack(">H", key)))
    grays = by_pillow(body)[0, :, 0]
    assert plain(body).pixels[0, :, 0].tolist() == np.where(grays == seen, 255, grays).tolist()


def test_the_colour_key_of_16_bits_hides_that_colour_only() -> None:
    rows = np.array([[0x1234, 0x5678, 0x9ABC, 0x3400, 0x7800, 0xBC00]], ">u2")
    body = png(16, 2, rows, chunk(b"tRNS", struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)))
    assert plain(body).pixels[0].tolist() == [[255, 255, 255], [0x34, 0x78, 0xBC]]


def test_the_colour_key_of_deep_gray_hides_that_gray_only() -> None:
    body = png(16, 0, np.array([[1000, 1001]], ">u2"), chunk(b"tRNS", struct.pack(">H", 1000)))
    assert plain(body).pixels[0, :, 0].tolist() == [255, 4]


@pytest.mark.parametrize("word", [b"transparency", b"icc_profile", b"exif", b"Raw profile type exif"])
def test_a_text_named_like_one_of_pillows_words_refuses_no_picture(word: bytes) -> None:
    body = encode(photo(), "PNG")
    body = body[:33] + chunk(b"tEXt", word + b"\0nonsense") + body[33:]
    assert np.array_equal(plain(body).pixels, photo())


# Profiles


def test_without_a_profile_the_verdict_is_none() -> None:
    assert plain(encode(photo(), "PNG")).color_profile == "none"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_an_srgb_profile_changes_no_pixel(form: str) -> None:
    body = encode(photo(), form, icc_profile=srgb_profile())
    assert plain(body).color_profile == "srgb"
    assert np.array_equal(plain(body).pixels, by_pillow(body))


def test_another_profile_is_converted_by_its_own_formula() -> None:
    """A profile of sRGB's primaries and a gamma of 1.8 differs from sRGB by its curve alone."""
    seen = plain(encode(photo(), "PNG", icc_profile=profile(1.8, "srgb")))
    linear = (photo() / 255) ** 1.8
    curve = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert seen.color_profile == "converted"
    assert np.abs(seen.pixels - np.rint(curve * 255)).max() <= 2


def test_white_stays_white_and_pure_red_of_a_wide_profile_is_cut() -> None:
    body = encode(np.array([[[255] * 3, [200, 0, 0]]], np.uint8), "PNG", icc_profile=profile(2.2))
    pixels = plain(body).pixels[0].astype(int)
    assert np.abs(pixels[0] - 255).max() <= 1
    assert pixels[1, 0] > 205


def test_colour_is_converted_before_it_is_composited() -> None:
    rgba = np.dstack([photo(), np.full((40, 60), 128, np.uint8)])
    opaque = plain(encode(photo(), "PNG", icc_profile=profile())).pixels
    expected = over_white(np.dstack([opaque, rgba[..., 3:]]))
    assert np.array_equal(plain(encode(rgba, "PNG", icc_profile=profile())).pixels, expected)


def test_a_gray_profile_is_converted() -> None:
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(1.0 * 256))
    gray = icc(b"GRAY", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": curve})
    seen = plain(encode(np.full((2, 2), 55, np.uint8), "PNG", icc_profile=gray))
    assert (seen.color_profile, abs(int(seen.pixels[0, 0, 0]) - 128) <= 2) == ("converted", True)


def test_a_profile_of_another_colour_space_is_ignored() -> None:
    seen = plain(encode(photo()[..., 0], "PNG", icc_profile=profile()))
    assert (seen.color_profile, np.array_equal(seen.pixels[..., 0], photo()[..., 0])) == ("ignored", True)


@pytest.mark.parametrize(
    "broken", [b"nonsense", profile()[:100], b"\0" * 500, profile()[:150] + b"\xff" * 300]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_that_does_not_parse_is_ignored(form: str, broken: bytes) -> None:
    body = encode(photo(), form, icc_profile=broken)
    assert plain(body).color_profile == "ignored"
    assert np.array_equal(plain(body).pixels, by_pillow(body))


def test_a_profile_beyond_the_cap_is_ignored() -> None:
    huge = profile() + bytes(5_000_000)
    assert plain(encode(photo(), "TIFF", icc_profile=huge)).color_profile == "ignored"


def test_the_memory_of_profiles_is_bounded() -> None:
    for gamma in range(color._MAX_CONVERSIONS + 8):
        plain(encode(photo(2, 2), "PNG", icc_profile=profile(1 + gamma / 100)))
    assert len(color._CONVERSIONS._found) == color._MAX_CONVERSIONS
