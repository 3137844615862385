"""What is taken, as what, and how it is brought upright; what is refused and in which words."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from service.errors import ImageNotDecodable, ImageTooLarge, UnsupportedImage
from service.intake.decode import decode
from tests.intake.pictures import ENCODINGS, LOSSLESS, by_pillow, encode, photo, plain, with_orientation

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
    assert (pixels.shape, pixels.dtype.name, pixels.flags.c_contiguous) == ((40, 60, 3), "uint8", True)


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


def test_refusals_hold_no_text_of_pillow() -> None:
    with pytest.raises(ImageNotDecodable) as refusal:
        plain(encode(photo(), "PNG")[:60])
    cause = refusal.value.__cause__
    assert cause is not None
    assert str(cause) not in refusal.value.detail
    assert "0x" not in refusal.value.detail


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


def test_orientation_is_read_beside_a_tag_that_pillow_warns_of() -> None:
    entries = [struct.pack("<HHLHH", 0x112, 3, 1, 6, 0), struct.pack("<HHLL", 0x11A, 5, 10**6, 8)]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + b"".join(entries) + bytes(4)
    assert plain(encode(photo(), "PNG", exif=exif)).pixels.shape == (60, 40, 3)


def test_a_broken_xmp_refuses_no_tiff() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[700] = 3
    tags[700] = 5
    assert np.array_equal(plain(encode(photo(), "TIFF", tiffinfo=tags)).pixels, photo())


def test_an_orientation_that_does_not_exist_counts_as_upright() -> None:
    body = encode(photo(), "PNG", exif=with_orientation(77))
    assert np.array_equal(plain(body).pixels, photo())


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
