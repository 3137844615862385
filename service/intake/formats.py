"""What a body claims to be: formats known by their first bytes, and what a header may ask for.

Reads bytes only and never decodes. What stands here runs before Pillow sees anything: Pillow reads
headers in Python, one marker, chunk or tag at a time, keeps all of them, and allocates some
canvases while it opens a file, so a hostile body of a few megabytes could cost minutes and
gigabytes before the size of the picture is known.
"""

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from PIL import ImageFile, ImageOps
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import ImageNotDecodable, UnsupportedImage

SUPPORTED = "JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF"

# Each is far above what cameras and editors write and far below what is felt: a photograph has some
# ten JPEG segments and scans or PNG chunks, and a TIFF of 50 megapixels in tiles of 16 x 16 lists
# 195 thousand offsets.
_MAX_SEGMENTS = 1024
_MAX_EXIF_SEGMENTS = 64
_MAX_SCANS = 100
# Pixels times scans: a second, at 50 megapixels still twice the scans that encoders make.
_MAX_SCANNED_PIXELS = 2**30
_MAX_JUNK_BYTES = 65_536
_MAX_CHUNKS = 65_536
_MAX_ANCILLARY_CHUNKS = 256
_MAX_GIF_HEAD_BYTES = 2**20
_MAX_RUN_LENGTH_BYTES = 2**22
_MAX_TAGS = 4096
_MAX_TAG_VALUES = 524_288
# libtiff unpacks whole tiles, which may be larger than the picture and all the same few bytes: so much more
# than the picture, and so many pixels, since a small picture may have a large tile.
_MAX_TILED_TIMES, _MAX_TILED_PIXELS = 4, 2**20

_HEIC_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))

_JPEG_MARKER = re.compile(rb"\xff[\xc0-\xfe]")
_JPEG_MARKER_IN_DATA = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_BARE_MARKERS = frozenset((0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)))
_SOS, _EOI = 0xDA, 0xD9

# Bytes a value, by type (TIFF 6.0 section 2, BigTIFF); types 1, 2 and 7 stay bytes in Python.
_TIFF_WIDTHS = {1: 1, 3: 2, 4: 4, 6: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8}  # of whole numbers
_TIFF_SIDES = (256, 257, 322, 323)  # width and height, of the picture and of a tile
_TIFF_SIZES = {3: 2, 4: 4, 5: 8, 6: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


class _BaseJpeg(JpegImageFile):
    """The first image of a JPEG, MPO or Ultra HDR file: the index of further images is not read."""

    def _read_dpi_from_exif(self) -> None:
        """Nothing: Pillow unpacks EXIF here for a resolution that nobody asks for."""


class _FirstPage(TiffImageFile):
    """The first page of a TIFF."""

    def load_end(self) -> None:
        """Turn upright; Pillow also unpacks every EXIF directory here, and fails on broken ones."""
        with suppress(Exception):
            ImageOps.exif_transpose(self, in_place=True)


@dataclass(frozen=True)
class Format:
    """A format taken: what it is called, how it is opened, and what is looked at before.

    `inspect` gives the number of pixels that the header declares where Pillow would allocate
    for them on opening, otherwise 0, and raises `ImageNotDecodable` for an absurd structure.
    """

    name: str
    media_type: str
    open: Callable[[BytesIO], ImageFile.ImageFile]
    inspect: Callable[[bytes], int]


def recognise(body: bytes) -> Format:
    """Find the format by the body's first bytes; labels and file names are never asked.

    Raises:
        ImageNotDecodable: the body is empty.
        UnsupportedImage: HEIC, with the way to convert it, or nothing that is known.
    """
    if not body:
        raise ImageNotDecodable("the image is empty: 0 bytes; was the file read before sending?")
    for signature, form in _SIGNATURES:
        if signature.match(body):
            return form
    if body[4:8] == b"ftyp":
        return _recognise_ftyp(body)
    raise UnsupportedImage(f"this is not an image of a known format; supported are {SUPPORTED}")


def _recognise_ftyp(body: bytes) -> Format:
    box = body[: min(int.from_bytes(body[:4], "big"), 1024)]
    brands = {body[8:12], *(box[i : i + 4] for i in range(16, len(box), 4))}
    if brands & _AVIF_BRANDS:
        return _AVIF
    if brands & _HEIC_BRANDS:
        raise UnsupportedImage(
            "HEIC/HEIF is not supported; convert it with `magick photo.heic photo.jpg`, or set an "
            "iPhone to Settings > Camera > Formats > Most Compatible; "
            f"supported are {SUPPORTED}"
        )
    raise UnsupportedImage(
        f"this is a video or another ISO media file, not an image; supported are {SUPPORTED}"
    )


def _absurd(what: str, limit: int) -> ImageNotDecodable:
    return ImageNotDecodable(f"the image has more than {limit} {what}, which no camera writes")


def _inspect_jpeg(body: bytes) -> int:
    """Walk the segments up to the first scan as Pillow does, and count scans where there are many."""
    junk, components, pixels, progressive = 0, 0, 0, False
    for code, gap, position in _segments(body, 2, _JPEG_MARKER):
        junk += gap
        if junk > _MAX_JUNK_BYTES:
            raise _absurd("bytes between JPEG segments", _MAX_JUNK_BYTES)
        if code in _SOF:
            components, progressive = _byte(body, position + 7), code in _PROGRESSIVE
            height, width = (int.from_bytes(body[position + at : position + at + 2]) for at in (3, 5))
            pixels = max(pixels, height * width)
        elif code == _SOS:
            _check_exif_segments(body, position)
            if progressive or _byte(body, position + 2) < components:
                _check_scans(body, position, pixels)
            break
    return 0


def _segments(body: bytes, position: int, marker: re.Pattern[bytes]) -> Iterator[tuple[int, int, int]]:
    """Give (code, bytes skipped before it, position behind it); the end of the body has code 0."""
    for _ in range(_MAX_SEGMENTS):
        match = marker.search(body, position)
        if match is None:
            yield 0, len(body) - position, len(body)
            return
        code, gap, position = body[match.end() - 1], match.start() - position, match.end()
        yield code, gap, position
        if code not in _BARE_MARKERS:
            position += max(2, int.from_bytes(body[position : position + 2], "big"))
    raise _absurd("JPEG segments", _MAX_SEGMENTS)


def _check_scans(body: bytes, first: int, pixels: int) -> None:
    """Each scan passes over all pixels while it may cost next to no bytes.

    https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf
    """
    scans, most = 1, min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(pixels, 1))
    behind = first + int.from_bytes(body[first : first + 2], "big")
    for code, _, _ in _segments(body, behind, _JPEG_MARKER_IN_DATA):
        scans += code == _SOS
        if code == _EOI:
            return
        if scans > most:
            raise _absurd(f"JPEG scans of {pixels} pixels", most)


def _check_exif_segments(body: bytes, end: int) -> None:
    """Pillow joins EXIF segments by copying what it has so far: quadratic in their number."""
    if body.count(b"Exif\0\0", 0, end) > _MAX_EXIF_SEGMENTS:
        raise _absurd("EXIF segments", _MAX_EXIF_SEGMENTS)


def _byte(body: bytes, position: int) -> int:
    return int.from_bytes(body[position : position + 1], "big")


def _little(body: bytes, position: int, size: int) -> int:
    return int.from_bytes(body[position : position + size], "little")


def _inspect_png(body: bytes) -> int:
    """Count the chunks; each that is not picture data may inflate to a mebibyte."""
    position, ancillary = 8, 0
    for _ in range(_MAX_CHUNKS):
        kind = body[position + 4 : position + 8]
        if kind == b"IEND" or len(kind) < 4:
            return 0
        ancillary += kind not in (b"IDAT", b"fdAT", b"fcTL")
        if ancillary > _MAX_ANCILLARY_CHUNKS:
            raise _absurd("PNG chunks beside the picture", _MAX_ANCILLARY_CHUNKS)
        position += 12 + int.from_bytes(body[position : position + 4], "big")
    raise _absurd("PNG chunks", _MAX_CHUNKS)


def _inspect_gif(body: bytes) -> int:
    """Skip the extensions before the first frame; give the canvas that holds screen and frame."""
    if len(body) < 13:
        return 0
    width, height = _little(body, 6, 2), _little(body, 8, 2)
    position = 13 + _palette_bytes(body[10])
    while position <= _MAX_GIF_HEAD_BYTES:
        introducer = body[position : position + 1]
        if introducer == b",":
            x, y, w, h = (_little(body, position + at, 2) for at in (1, 3, 5, 7))
            return max(width, x + w) * max(height, y + h)
        if introducer in (b"", b";"):
            return width * height
        position = position + 1 if introducer != b"!" else _after_extension(body, position + 2)
    raise _absurd("bytes before the first frame of a GIF", _MAX_GIF_HEAD_BYTES)


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 128 else 0


def _after_extension(body: bytes, position: int) -> int:
    while position <= _MAX_GIF_HEAD_BYTES and (length := _byte(body, position)):
        position += 1 + length
    return position + 1


def _inspect_webp(body: bytes) -> int:
    """The canvas, which libwebp's animation decoder allocates twice on opening.

    https://developers.google.com/speed/webp/docs/riff_container and its lossless specification.
    """
    kind = body[12:16]
    if kind == b"VP8X":
        width, height = _little(body, 24, 3) + 1, _little(body, 27, 3) + 1
    elif kind == b"VP8L":
        bits = _little(body, 21, 4)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = _little(body, 26, 2) & 0x3FFF, _little(body, 28, 2) & 0x3FFF
    return width * height


def _inspect_tiff(body: bytes) -> int:
    """Add up the values of the first directory: Pillow makes a Python object of each. Measure its tiles.

    It skips tags whose values cannot all lie in the file, so these do not count.
    """
    order: Literal["little", "big"] = "little" if body.startswith(b"II") else "big"
    if b"+" in body[2:4]:  # BigTIFF
        at, offset_size, count_size, entry = 8, 8, 8, "HHQ8s"
    else:
        at, offset_size, count_size, entry = 4, 4, 2, "HHL4s"
    offset = int.from_bytes(body[at : at + offset_size], order)
    begin = offset + count_size
    tags = int.from_bytes(body[offset:begin], order)
    if tags > _MAX_TAGS:
        raise _absurd("TIFF tags", _MAX_TAGS)
    entry = ("<" if order == "little" else ">") + entry
    table = body[begin : begin + tags * struct.calcsize(entry)]
    whole = len(table) // struct.calcsize(entry) * struct.calcsize(entry)
    entries = list(struct.iter_unpack(entry, table[:whole]))
    counts = ((count, count * _TIFF_SIZES.get(kind, 0)) for _, kind, count, _ in entries)
    if sum(count for count, size in counts if 0 < size <= len(body)) > _MAX_TAG_VALUES:
        raise _absurd("values in TIFF tags", _MAX_TAG_VALUES)
    # Of a tag that is there twice the larger value counts, whichever a reader takes.
    sizes: dict[int, int] = {}
    for tag, kind, _, value in entries:
        size = int.from_bytes(value[: _TIFF_WIDTHS.get(kind)], order)
        sizes[tag] = max(size, sizes.get(tag, 0))
    _check_tiles(*(sizes.get(tag, 0) for tag in _TIFF_SIDES))
    return 0


def _check_tiles(width: int, height: int, tile_width: int, tile_height: int) -> None:
    if not (tile_width and tile_height):
        return
    tiled = -(-width // tile_width) * tile_width * -(-height // tile_height) * tile_height
    if tiled > max(_MAX_TILED_TIMES * width * height, _MAX_TILED_PIXELS):
        raise ImageNotDecodable(
            f"the tiles of the TIFF hold {tiled} pixels and its picture has {width * height}: save it in "
            "strips, or in tiles that fit"
        )


def _inspect_bmp(body: bytes) -> int:
    """Pillow unpacks run lengths (compression 1 and 2) in Python, at some 4 MB a second."""
    run_lengths = _little(body, 14, 4) > 12 and _little(body, 30, 4) in (1, 2)
    if run_lengths and len(body) > _MAX_RUN_LENGTH_BYTES:
        raise _absurd("bytes of run-length coding in a BMP", _MAX_RUN_LENGTH_BYTES)
    return 0


def _inspect_avif(_body: bytes) -> int:
    """Nothing: libavif allocates no picture on opening and has limits of its own."""
    return 0


_AVIF = Format("AVIF", "image/avif", AvifImageFile, _inspect_avif)
_SIGNATURES = tuple(
    (re.compile(signature, re.DOTALL), form)
    for signature, form in (
        (rb"\xff\xd8\xff", Format("JPEG", "image/jpeg", _BaseJpeg, _inspect_jpeg)),
        (rb"\x89PNG\r\n\x1a\n", Format("PNG", "image/png", PngImageFile, _inspect_png)),
        (rb"RIFF....WEBP", Format("WebP", "image/webp", WebPImageFile, _inspect_webp)),
        (rb"GIF8[79]a", Format("GIF", "image/gif", GifImageFile, _inspect_gif)),
        (rb"BM", Format("BMP", "image/bmp", BmpImageFile, _inspect_bmp)),
        (rb"II[*+]\0|MM\0[*+]", Format("TIFF", "image/tiff", _FirstPage, _inspect_tiff)),
    )
)
