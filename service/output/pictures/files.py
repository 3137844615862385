"""The table of picture formats: pixels and the words of the scale to the bytes of a file."""

import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from service.errors import NotDrawable
from service.parameters import PictureFormat

Words = Mapping[str, str]
_KEY = "featuremaps"
_OWN_CHUNKS = ("vmin", "vmax")
# TIFF's and therefore EXIF's ImageDescription: ASCII text.
_IMAGE_DESCRIPTION = 0x010E


@dataclass(frozen=True, eq=False)
class Canvas:
    """Pixels (H, W) of indices into `palette` (256, 3), or (H, W, 3) in colour without one; all uint8.

    `enlarged` says that a cell is more than one pixel wide.
    """

    pixels: npt.NDArray[np.uint8]
    palette: npt.NDArray[np.uint8] | None = None
    enlarged: bool = False

    def indexed(self) -> Image.Image:
        """As an image with the palette where there is one."""
        image = Image.fromarray(self.pixels)
        if self.palette is not None:
            image.putpalette(self.palette.tobytes())
        return image

    def colored(self) -> Image.Image:
        """As an image in red, green and blue."""
        return Image.fromarray(self.pixels if self.palette is None else self.palette[self.pixels])


class PictureFile(Protocol):
    """One file format; one more is one class and one line in `FILES`."""

    media_type: str
    extension: str
    longest_side: int

    def encode(self, canvas: Canvas, words: Words) -> bytes:
        """The file's bytes, the same ones for the same canvas and words."""


class Png:
    """Exact: one byte a pixel and the colormap as palette, so that the level of every cell stays readable.

    The scale stands in tEXt chunks: `featuremaps` as JSON, `vmin` and `vmax` by themselves.
    """

    media_type, extension, longest_side = "image/png", "png", 2**31 - 1

    def encode(self, canvas: Canvas, words: Words) -> bytes:
        """Deflated at the fastest level.

        Cells of one pixel compress as well and two to three times as fast with runs only; enlarged
        cells repeat whole rows, which runs do not see.
        """
        text = PngImagePlugin.PngInfo()
        text.add_text(_KEY, json.dumps(words))
        for key in _OWN_CHUNKS:
            if key in words:
                text.add_text(key, words[key])
        runs = canvas.palette is not None and not canvas.enlarged
        strategy = zlib.Z_RLE if runs else zlib.Z_DEFAULT_STRATEGY
        return _save(canvas.indexed(), "PNG", compress_level=1, compress_type=strategy, pnginfo=text)


class Webp:
    """Lossless for maps, lossy at quality 85 for colour; the scale is EXIF's ImageDescription, as JSON."""

    media_type, extension, longest_side = "image/webp", "webp", 16383

    def encode(self, canvas: Canvas, words: Words) -> bytes:
        """Method 1: as fast as 0 and up to a sixth smaller; the next ones cost more than they gain."""
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = json.dumps(words)
        lossless = canvas.palette is not None
        # For a lossless file quality is effort.
        quality = 0 if lossless else 85
        return _save(canvas.colored(), "WEBP", lossless=lossless, quality=quality, method=1, exif=exif)


class Jpeg:
    """Lossy at quality 90, colour at full resolution; the scale is a comment, as JSON."""

    media_type, extension, longest_side = "image/jpeg", "jpg", 65500

    def encode(self, canvas: Canvas, words: Words) -> bytes:
        """Baseline, with the standard tables."""
        comment = json.dumps(words).encode()
        return _save(canvas.colored(), "JPEG", quality=90, subsampling=0, comment=comment)


FILES: dict[PictureFormat, PictureFile] = {"png": Png(), "webp": Webp(), "jpeg": Jpeg()}


def refuse_side(size: tuple[int, int], name: PictureFormat) -> None:
    """Refuse a side (y, x) that the format cannot hold.

    Raises:
        NotDrawable
    """
    limit = FILES[name].longest_side
    if max(size) > limit:
        raise NotDrawable(
            f"the picture would be {size[1]} x {size[0]} pixels and {name} holds at most {limit} a side: "
            "ask for format=png, other columns or a smaller scale",
            limit=limit,
            actual=max(size),
        )


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
