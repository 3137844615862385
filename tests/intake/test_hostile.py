"""Bombs, absurd structures and damaged files are refused in our words, in time and in memory."""

import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ImageNotDecodable, ImageTooLarge, RequestError, UnsupportedImage
from service.intake.decode import decode
from tests.intake.pictures import by_pillow, chunk, encode, photo, plain, profile, with_orientation

SEVERAL = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


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
    start = time.process_time()
    with pytest.raises(ImageTooLarge) as refusal:
        plain(BOMBS[name])
    assert refusal.value.extensions["actual"] > 2e8
    assert time.process_time() - start < 0.5


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
    start = time.process_time()
    with pytest.raises(ImageNotDecodable, match="no camera writes"):
        plain(ABSURD[name])
    # Refusals take milliseconds; CPU time swells where others use the machine too.
    assert time.process_time() - start < 2


def tiled(size: tuple[int, int], tile: tuple[int, int], *, big: bool = False, kind: int = 4) -> bytes:
    """A gray TIFF whose tiles are all the same few bytes; `kind` is the type of the tile's width."""
    data = zlib.compress(bytes(tile[0] * tile[1]), 9)
    count = -(-size[0] // tile[0]) * -(-size[1] // tile[1])
    first, number = (16, "Q") if big else (8, "L")
    offsets, lengths = (struct.pack(f"<{count}{number}", *[value] * count) for value in (first, len(data)))
    places = [first + len(data), first + len(data) + len(offsets)]
    if count == 1:
        places = [first, len(data)]
    directory = first + len(data) + len(offsets) + len(lengths)
    long = 16 if big else 4
    tags = [(256, 4, 1, size[0]), (257, 4, 1, size[1]), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (322, kind, 1, tile[0]), (323, 4, 1, tile[1])]
    tags += [(324, long, count, places[0]), (325, long, count, places[1])]
    entry, counted = ("<HHQQ", "<Q") if big else ("<HHLL", "<H")
    head = (
        b"II+\0\x08\0\0\0" + struct.pack("<Q", directory) if big else b"II*\0" + struct.pack("<L", directory)
    )
    table = b"".join(struct.pack(entry, *tag) for tag in tags)
    return head + data + offsets + lengths + struct.pack(counted, len(tags)) + table + bytes(8)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("size", "tile", "kind"),
    [((9600, 1), (16, 100_000), 4), ((1, 1), (3000, 3000), 3), ((9600, 1), (16, 100_000), 1)],
)
def test_tiles_that_hold_far_more_than_the_picture_are_refused_before_they_are_unpacked(
    size: tuple[int, int], tile: tuple[int, int], kind: int, big: bool
) -> None:
    body = tiled(size, tile, big=big, kind=kind)
    assert len(body) < 200_000
    start = time.process_time()
    with pytest.raises(ImageNotDecodable, match="tiles of the TIFF hold"):
        plain(body)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    ("size", "tile"), [((100, 70), (16, 16)), ((60, 50), (512, 512)), ((300, 200), (256, 256))]
)
def test_tiles_that_reach_over_the_edge_are_taken(
    size: tuple[int, int], tile: tuple[int, int], big: bool
) -> None:
    picture = plain(tiled(size, tile, big=big))
    assert (picture.pixels.shape, picture.pixels.max()) == ((size[1], size[0], 3), 0)


def test_scans_are_counted_by_the_pixels_that_they_pass_over() -> None:
    """A hundred scans of one colour are a few bytes each, and took three seconds of 49 megapixels."""
    body = encode(np.zeros((5000, 5000), np.uint8), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    assert plain(body).size == (5000, 5000)
    with pytest.raises(ImageNotDecodable, match="more than 42 JPEG scans of 25000000 pixels"):
        plain(body[:-2] + body[last:-2] * 60 + b"\xff\xd9")


def test_many_scans_of_an_honest_progressive_jpeg_are_taken() -> None:
    body = encode(photo(), "JPEG", progressive=True)
    assert (body.count(b"\xff\xda") > 5, plain(body).pixels.shape) == (True, (40, 60, 3))


def test_scans_are_not_counted_behind_the_first_image() -> None:
    body = encode(photo(), "JPEG", progressive=True)
    assert np.array_equal(plain(body + b"\xff\xda\0\2" * 200).pixels, by_pillow(body))


def with_texts(body: bytes) -> bytes:
    """A PNG with eight texts that inflate to a mebibyte each."""
    texts = (chunk(b"zTXt", b"text %d\0\0" % i + INFLATES) for i in range(8))
    return body[:33] + b"".join(texts) + body[33:]


def with_segments(body: bytes) -> bytes:
    """A JPEG with four mebibytes in segments of an application that nobody knows."""
    return body[:2] + (b"\xff\xe3\xff\xff" + bytes(65_533)) * 64 + body[2:]


LADEN = {
    "png": with_texts(encode(photo(), "PNG")),
    "png, turned": with_texts(encode(photo(), "PNG", exif=with_orientation(6))),
    "png, gray": with_texts(encode(photo()[..., 0], "PNG")),
    "jpeg": with_segments(HEAD),
    "jpeg, turned": with_segments(encode(photo(), "JPEG", exif=with_orientation(6))),
}


@pytest.mark.parametrize("name", LADEN)
def test_a_decoded_picture_holds_nothing_of_its_file_but_pixels(name: str) -> None:
    """Pixels are held by Pillow, outside of Python's memory."""
    plain(LADEN[name])
    tracemalloc.start()
    try:
        picture = plain(LADEN[name])
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert sorted(picture.size) == [40, 60]


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


WHOLE_FOLDER = """
import sys, time
from pathlib import Path
from service.errors import RequestError
from service.intake.decode import decode
for path in sorted(path for name in sys.argv[2:] for path in Path(name).iterdir()):
    start = time.process_time()
    try:
        decode(path.read_bytes(), max_pixels=50_000_000)
    except RequestError as refusal:
        assert str(path) not in refusal.detail
    assert time.process_time() - start < float(sys.argv[1]), path
status = Path("/proc/self/status").read_text()
print([line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")][0])
"""


def peak_bytes(*folders: Path, limit_s: float = 30) -> int:
    """Decode all in a fresh process; VmHWM, since ru_maxrss is handed down by the process that forks."""
    command = [sys.executable, "-W", "error", "-c", WHOLE_FOLDER, str(limit_s), *map(str, folders)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


def test_every_real_file_is_taken_or_refused_in_time_and_memory(test_data: Path) -> None:
    folders = [test_data / "images" / name for name in ("good", "odd", "bad")]
    assert peak_bytes(*folders, limit_s=5) < 2**30


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("WEBP", "RGBA", {"quality": 1, "method": 0}),
        pytest.param("JPEG", "CMYK", {"progressive": True}, marks=pytest.mark.slow),
        pytest.param("PNG", "RGBA", {"compress_level": 1}, marks=pytest.mark.slow),
        pytest.param("TIFF", "F", {"compression": "tiff_adobe_deflate"}, marks=pytest.mark.slow),
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
    assert peak_bytes(tmp_path) < 2**30


def exif_of_many_values(tag: int) -> bytes:
    """Half a million rationals in one tag, after a resolution unit of inches, which makes Pillow read on."""
    unit = struct.pack("<HHLHH", 0x128, 3, 1, 2, 0)
    entries = [struct.pack("<HHLL", tag, 5, 480_000, 38), unit]
    directory = struct.pack("<H", 2) + b"".join(entries) + bytes(4)
    return b"II*\0\x08\0\0\0" + directory + b"\1\0\0\0" * 960_000


def jpeg_of_many_values() -> bytes:
    exif = exif_of_many_values(0x11A)
    parts = [b"Exif\0\0" + exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return HEAD[:2] + segments + HEAD[20:]


def png_of_many_values() -> bytes:
    body = encode(photo(), "PNG")
    return body[:33] + chunk(b"eXIf", exif_of_many_values(0x112)) + body[33:]


@pytest.mark.parametrize("make", [jpeg_of_many_values, png_of_many_values])
def test_values_of_a_huge_exif_are_not_unpacked(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """Pillow would make an object of each, which takes 300 MB for a megabyte."""
    (tmp_path / "large").write_bytes(make())
    assert peak_bytes(tmp_path) < 100 * 2**20
