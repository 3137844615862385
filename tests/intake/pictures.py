"""Pictures and profiles drawn and encoded for the tests, and other ways to decode them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps

from service.intake.decode import decode
from service.values import Picture

LIMIT = 50_000_000
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


def over_white(rgba: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
