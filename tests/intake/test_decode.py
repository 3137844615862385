"""Pictures are drawn and encoded here; what is expected of them are formulas or Pillow's own way."""

import io
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from service.errors import ImageNotDecodable, ImageTooLarge, RequestError, UnsupportedImage
from service.intake import color
from service.intake.decode import decode
from service.values import Picture

LIMIT = 50_000_000
SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}
ENCODINGS: dict[str, dict[str, Any]] = {"JPEG": {}, "GIF": {}, "AVIF": {}, **LOSSLESS}


def photo(height: int = 40, width: int = 60) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8)


def encode(image: Image.Image | npt.NDArray[Any], form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def plain(body: bytes) -> Picture:
    return decode(body, max_pixels=LIMIT)


def by_pillow(body: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(body)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, kind: int, rows: npt.NDArray[Any], *chunks: bytes) -> bytes:
    """A PNG written from the specification; `rows` as they lie in the file, one row a line."""
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    height, width = rows.shape[0], rows.shape[1] * 8 * rows.itemsize // depth
    width //= {0: 1, 2: 3, 3: 1}[kind]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def profile(gamma: float = 1.8, primaries: str = "wide") -> bytes:
    """An ICC v2 matrix profile of the specification's minimum; "wide" swaps sRGB's red for a purer one."""
    red = {"wide": (0.6097, 0.3111, 0.0195), "srgb": (0.4361, 0.2225, 0.0139)}[primaries]
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78,
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(*red),
        b"gXYZ": xyz(*(np.array((0.9642, 1.0, 0.8249)) - red - (0.1431, 0.0606, 0.7141))),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
    } | {name: b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256)) for name in TRCS}
    return icc(b"RGB ", tags)


TRCS = (b"rTRC", b"gTRC", b"bTRC")


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    offset, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        tag += b"\0" * (-len(tag) % 4)
        table += name + struct.pack(">II", offset + len(data), len(tag))
        data += tag
    head = struct.pack(">I4sI4s4s4s", offset + len(data), b"", 0x02100000, b"mntr", space, b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + xyz(0.9642, 1.0, 0.8249)[8:] + b"\0" * 48
    return head + struct.pack(">I", len(tags)) + table + data


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# What is taken


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_give_back_the_pixels(form: str) -> None:
    assert np.array_equal(plain(encode(photo(), form, **LOSSLESS[form])).pixels, photo())


@pytest.mark.parametrize("form", ENCODINGS)
def test_media_type_is_the_detected_one(form: str) -> None:
    assert plain(encode(photo(), form)).media_type == f"image/{form.lower()}"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_a_plain_jpeg_keeps_the_pixels_of_pillow(options: dict[str, Any]) -> None:
    body = encode(photo(), "JPEG", **options)
    assert np.array_equal(plain(body).pixels, by_pillow(body))


def test_pixels_are_contiguous_uint8_of_height_width_three() -> None:
    pixels = plain(encode(photo(40, 60)[..., 0], "PNG")).pixels
    assert (pixels.shape, pixels.dtype, pixels.flags.c_contiguous) == ((40, 60, 3), np.uint8, True)


def test_large_pictures_are_copied_by_strips_without_a_seam() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2100, 2001, 3), np.uint8)
    assert np.array_equal(plain(encode(pixels, "BMP")).pixels, pixels)


def test_of_an_mpo_the_first_image_is_taken() -> None:
    second = Image.fromarray(photo()[::-1].copy())
    body = encode(photo(), "MPO", save_all=True, append_images=[second])
    assert (plain(body).media_type, np.array_equal(plain(body).pixels, by_pillow(body))) == (
        "image/jpeg",
        True,
    )


def test_a_broken_index_of_an_mpo_does_not_refuse_its_first_image() -> None:
    body = encode(photo(), "MPO", save_all=True, append_images=[Image.fromarray(photo())])
    at = body.index(b"MPF\0") + 8
    assert np.array_equal(plain(body[:at] + b"\xff" * 40 + body[at + 40 :]).pixels, by_pillow(body))


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(form: str) -> None:
    dark, light = (Image.new("RGB", (16, 16), (level,) * 3) for level in (10, 240))
    body = encode(dark, form, save_all=True, append_images=[light])
    assert plain(body).pixels.max() < 20


# What is refused


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"hevc", b"msf1"])
def test_heic_is_refused_with_the_way_to_convert_it(brand: bytes) -> None:
    body = struct.pack(">I", 24) + b"ftyp" + brand + b"\0\0\0\0mif1heic" + b"\0" * 100
    with pytest.raises(UnsupportedImage, match=r"magick photo\.heic photo\.jpg.*Most Compatible"):
        plain(body)


@pytest.mark.parametrize(
    "body",
    [b"P5\n2 2\n255\n....", b"qoif" + b"\0" * 20, b"\0\0\1\0\1\0", b"%PDF-1.7", b"hello", b"\xff\xd8"],
)
def test_unknown_bytes_are_refused_with_what_is_supported(body: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF"):
        plain(body)


def test_a_video_is_refused_as_a_video() -> None:
    with pytest.raises(UnsupportedImage, match="video"):
        plain(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 40)


def test_an_empty_body_is_refused_in_clear_words() -> None:
    with pytest.raises(ImageNotDecodable, match="0 bytes"):
        plain(b"")


@pytest.mark.parametrize("form", ENCODINGS)
def test_half_a_picture_is_refused(form: str) -> None:
    body = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), form)
    with pytest.raises(ImageNotDecodable, match="truncated"):
        plain(body[: len(body) // 2])


@pytest.mark.parametrize("form", ENCODINGS)
def test_more_pixels_than_allowed_are_refused_with_both_numbers(form: str) -> None:
    with pytest.raises(ImageTooLarge) as refusal:
        decode(encode(photo(40, 60), form), max_pixels=2399)
    assert refusal.value.extensions == {"limit": 2399, "actual": 2400}


@pytest.mark.parametrize("form", ENCODINGS)
def test_as_many_pixels_as_allowed_are_taken(form: str) -> None:
    assert decode(encode(photo(40, 60), form), max_pixels=2400).pixels.shape == (40, 60, 3)


SQUARE = struct.pack("<HH", 60000, 60000)
BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", b""),
    "gif": b"GIF89a" + SQUARE + b"\0\0\0!\xf9\4\x08\0\0\0\0,\0\0\0\0" + SQUARE + b"\0\2\1\0\0;",
    "gif of a small screen": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + SQUARE + b"\0\2\1\0\0;",
    "webp": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\x5f\xea\0" * 2 + bytes(80),
    "webp lossless": b"RIFF\x64\0\0\0WEBPVP8L\x50\0\0\0\x2f\xff\xff\xff\x0f" + bytes(80),
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 60000, 60000, 1, 24) + bytes(40),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ImageTooLarge) as refusal:
        plain(BOMBS[name])
    assert refusal.value.extensions["actual"] > 2e8
    assert time.perf_counter() - start < 0.5


def test_refusals_hold_no_text_of_pillow() -> None:
    with pytest.raises(ImageNotDecodable) as refusal:
        plain(encode(photo(), "PNG")[:60])
    cause = refusal.value.__cause__
    assert cause is not None
    assert str(cause) not in refusal.value.detail
    assert "0x" not in refusal.value.detail


HEAD = encode(photo(), "JPEG")
PNG_HEAD = encode(photo(), "PNG")[:33]
INFLATES = zlib.compress(bytes(2**20), 9)
ABSURD: dict[str, bytes] = {
    "jpeg segments": HEAD[:2] + b"\xff\xe0\0\2" * 1_000_000 + HEAD[2:],
    "jpeg exif segments": HEAD[:2] + (b"\xff\xe1\0\x0aExif\0\0ab" * 500) + HEAD[2:],
    "jpeg junk": HEAD[:20] + bytes(5_000_000),
    "jpeg junk between": HEAD[:20] + bytes(5_000_000) + HEAD[20:],
    "jpeg scans": encode(photo(), "JPEG", progressive=True)[:-2] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * 200,
    "png chunks": PNG_HEAD + chunk(b"abCd", b"") * 200_000,
    "png text": PNG_HEAD + chunk(b"zTXt", b"\0\0" + INFLATES) * 5000,
    "png data": PNG_HEAD + chunk(b"IDAT", b"") * 200_000,
    "gif blocks": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * 1_000_000 + b"\0",
    "gif junk": b"GIF89a\1\0\1\0\0\0\0" + bytes(2_000_000),
    "tiff tags": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 100_000) + bytes(2_000_000),
    "tiff values": b"II*\0\x08\0\0\0" + struct.pack("<HHHLL", 1, 0x11A, 5, 600_000, 26) + bytes(5_000_000),
    "bmp run lengths": encode(photo(), "BMP")[:30] + b"\1\0\0\0" + bytes(9_000_000),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_structure_is_refused_before_pillow_walks_it(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ImageNotDecodable, match="no camera writes"):
        plain(ABSURD[name])
    assert time.perf_counter() - start < 0.5


def test_many_scans_of_an_honest_progressive_jpeg_are_taken() -> None:
    body = encode(photo(), "JPEG", progressive=True)
    assert (body.count(b"\xff\xda") > 5, plain(body).pixels.shape) == (True, (40, 60, 3))


# Upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(form: str, orientation: int) -> None:
    stored = photo()
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    body = encode(stored, form, exif=with_orientation(orientation), **LOSSLESS[form])
    assert np.array_equal(plain(body).pixels, turned)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("form", ["JPEG", "AVIF"])
def test_orientation_is_applied_as_pillow_does(form: str, orientation: int) -> None:
    body = encode(photo(), form, exif=with_orientation(orientation))
    assert np.array_equal(plain(body).pixels, by_pillow(body))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"x" * 99]
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_refuses_no_picture(form: str, exif: bytes) -> None:
    assert plain(encode(photo(), form, exif=exif)).pixels.shape == (40, 60, 3)


def test_an_orientation_that_does_not_exist_counts_as_upright() -> None:
    body = encode(photo(), "PNG", exif=with_orientation(77))
    assert np.array_equal(plain(body).pixels, photo())


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


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


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


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\x80"])
def test_a_transparent_palette_is_composited_on_white(transparency: int | bytes) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    seen = plain(encode(image, "PNG", transparency=transparency)).pixels[0]
    alphas = {1: (255, 0, 255)}.get(transparency, (255, 0, 128))
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


# Anything at all


@SEVERAL
@given(st.binary(max_size=300))
def test_arbitrary_bytes_meet_only_our_refusals(body: bytes) -> None:
    with pytest.raises(RequestError):
        plain(body)


@SEVERAL
@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0+"]),
    st.binary(),
)
def test_arbitrary_bytes_behind_a_signature_meet_only_our_refusals(signature: bytes, rest: bytes) -> None:
    with pytest.raises(RequestError):
        plain(signature + rest)


SEEDS = {
    "jpeg": encode(photo(), "JPEG", exif=with_orientation(6), icc_profile=profile()),
    "progressive": encode(photo(), "JPEG", progressive=True),
    "mpo": encode(photo(), "MPO", save_all=True, append_images=[Image.fromarray(photo())]),
    "png": encode(photo(), "PNG", exif=with_orientation(6), icc_profile=profile()),
    "apng": encode(photo(), "PNG", save_all=True, append_images=[Image.fromarray(255 - photo())]),
    "palette": encode(Image.fromarray(photo()).convert("P"), "PNG", transparency=3),
    "webp": encode(photo(), "WEBP", exif=with_orientation(6), icc_profile=profile()),
    "gif": encode(photo(), "GIF", save_all=True, append_images=[Image.fromarray(255 - photo())]),
    "bmp": encode(Image.fromarray(photo()).convert("P"), "BMP"),
    "tiff": encode(photo(), "TIFF", icc_profile=profile(), exif=with_orientation(6)),
    "lzw": encode(photo(), "TIFF", compression="tiff_lzw"),
    "float": encode(photo()[..., 0].astype(np.float32), "TIFF"),
    "avif": encode(photo(), "AVIF", exif=with_orientation(6), icc_profile=profile()),
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_damaged_file_decodes_or_meets_our_refusal(name: str) -> None:
    random = np.random.default_rng(len(name))
    for _ in range(120):
        body = np.frombuffer(SEEDS[name], np.uint8).copy()
        # Most structure stands in the first bytes, so half of the damage goes there.
        for _ in range(random.integers(1, 6)):
            end = len(body) if random.random() < 0.5 else min(len(body), 200)
            body[random.integers(0, end)] = random.integers(0, 256)
        damaged = body[: random.integers(4, len(body) + 1)] if random.random() < 0.3 else body
        with suppress(ImageNotDecodable, ImageTooLarge, UnsupportedImage):
            assert decode(damaged.tobytes(), max_pixels=1_000_000).pixels.ndim == 3


# Real files


@pytest.mark.parametrize("kind", ["Landscape_6", "Landscape_4", "Portrait_6"])
def test_a_turned_photograph_looks_like_the_upright_one(test_data: Path, kind: str) -> None:
    """They are other encodings, tagged "Generic RGB" with a gamma of 1.8, so they agree only as converted."""
    turned = plain((test_data / "images" / "odd" / f"{kind}.jpg").read_bytes())
    upright = plain((test_data / "images" / "good" / f"{kind[:-1]}1.jpg").read_bytes())
    difference = np.abs(turned.pixels.astype(int) - upright.pixels)
    assert (turned.color_profile, turned.pixels.shape) == ("converted", upright.pixels.shape)
    assert difference.mean() < 6


def test_drawings_on_a_transparent_ground_are_seen_on_white(test_data: Path) -> None:
    pixels = plain((test_data / "images" / "odd" / "full-transparent.png").read_bytes()).pixels
    assert pixels.min() == 255


def test_photographs_without_profile_and_alpha_keep_the_pixels_of_pillow(test_data: Path) -> None:
    for path in sorted((test_data / "images" / "good").glob("*")):
        picture = plain(path.read_bytes())
        if picture.color_profile in ("none", "srgb"):
            assert np.array_equal(picture.pixels, by_pillow(path.read_bytes())), path.name


WHOLE_FOLDER = """
import resource, sys, time
from pathlib import Path
from service.errors import RequestError
from service.intake.decode import decode
for path in sorted(path for name in sys.argv[1:] for path in Path(name).iterdir()):
    start = time.perf_counter()
    try:
        decode(path.read_bytes(), max_pixels=50_000_000)
    except RequestError as refusal:
        assert str(path) not in refusal.detail
    assert time.perf_counter() - start < 5, path
status = Path("/proc/self/status").read_text()
print([line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")][0])
"""


def peak_bytes(program: str, *arguments: str) -> int:
    """Run in a fresh process; VmHWM, since ru_maxrss is handed down by the process that forks."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


def test_every_real_file_is_taken_or_refused_in_time_and_memory(test_data: Path) -> None:
    folders = [str(test_data / "images" / name) for name in ("good", "odd", "bad")]
    assert peak_bytes(WHOLE_FOLDER, *folders) < 2**30


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("WEBP", "RGBA", {"quality": 1, "method": 0}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
    ],
)
def test_fifty_megapixels_stay_under_a_gibibyte(
    tmp_path: Path, form: str, mode: str, options: dict[str, Any]
) -> None:
    image = (
        Image.new("F", (7071, 7071), 0.5) if mode == "F" else Image.new(mode, (7071, 7071), (90, 80, 70, 60))
    )
    with_profile = {"icc_profile": profile()} if mode == "RGBA" else {}
    (tmp_path / "large").write_bytes(encode(image, form, **options, **with_profile))
    assert peak_bytes(WHOLE_FOLDER, str(tmp_path)) < 2**30


def test_values_of_a_jpegs_exif_are_not_unpacked(tmp_path: Path) -> None:
    """60 segments of EXIF hold half a million rationals; Pillow would make an object of each."""
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHLLI", 1, 0x11A, 5, 480_000, 26, 0) + b"\1\0\0\0" * 960_000
    parts = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    (tmp_path / "large.jpg").write_bytes(HEAD[:2] + segments + HEAD[20:])
    assert peak_bytes(WHOLE_FOLDER, str(tmp_path)) < 100 * 2**20
