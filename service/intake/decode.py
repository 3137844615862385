"""Untrusted bytes to upright sRGB pixels, whole or refused; only here is Pillow let to read."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image, ImageFile

from service.errors import ImageNotDecodable, ImageTooLarge
from service.intake.color import to_srgb
from service.intake.formats import Format, recognise
from service.values import Picture

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MAX_EXIF_BYTES = 2**20
_PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
_PNG_GRAY_KEY_STEP = {1: 1, 2: 85, 4: 17, 8: 1}


def decode(body: bytes, *, max_pixels: int, keep_alpha: bool = False) -> Picture:
    """Decode JPEG (MPO, Ultra HDR), PNG (APNG), WebP, GIF, BMP, TIFF or AVIF to sRGB pixels.

    Of a file with several images the first is taken. EXIF orientation is applied (what is broken
    counts as upright). In this order palettes are resolved, 16-bit and float gray is scaled, not
    clipped, colours go through an embedded ICC profile to sRGB (CMYK without one by Pillow's plain
    formula, Adobe's inverted inks included), and transparency is composited on white. All of it is
    lossy where it applies; an sRGB picture without alpha keeps the very pixels of Pillow's
    decoder. Colour of 16 bits a channel arrives cut to 8 bits by Pillow.

    Args:
        body: the file, at most as long as the door lets in.
        max_pixels: width times height allowed, read from the header before pixels are decoded.
        keep_alpha: for networks that take transparency as a channel; it is not composited then.

    Returns:
        The upright image, the detected media type, and what became of the profile.

    Raises:
        UnsupportedImage: not one of these formats; HEIC is told how to be converted.
        ImageTooLarge: more than `max_pixels`, with `limit` and `actual`.
        ImageNotDecodable: empty, truncated, damaged, or of a variant that does not decode.
    """
    form = recognise(body)
    _silence_pillow()
    _check_size(form.inspect(body), max_pixels)
    with _refusals(form):
        file = form.open(BytesIO(body))
    _check_size(file.width * file.height, max_pixels)
    with _refusals(form):
        image = _load(file, form, body)
        del file
        turn = _turn(image)
        profile = image.info.get("icc_profile")
        rgb, verdict, alpha = to_srgb(image, profile=profile, keep_alpha=keep_alpha)
    del image  # what is not needed is let go at once: of 50 megapixels each copy takes 200 MB
    upright = _Bare(rgb if turn is None else rgb.transpose(turn))
    del rgb
    if alpha is not None:
        alpha = _Bare(alpha if turn is None else alpha.transpose(turn))
    return Picture(upright, form.media_type, verdict, alpha)


class _Bare(Image.Image):
    """A loaded picture's pixels, shared and not copied, without what else its file holds.

    Pillow keeps texts and segments unpacked in `info` and in the file's object, and hands them on to
    every copy: a PNG of 63 kB can hold 63 MB beside its pixels, as long as the picture is kept.
    """

    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        # The two attributes that Pillow asks every decoder, a class of its own as this one, to set:
        # https://pillow.readthedocs.io/en/stable/handbook/writing-your-own-image-plugin.html
        self.im, self._mode, self._size = image.im, image.mode, image.size


@contextmanager
def _refusals(form: Format) -> Iterator[None]:
    """Turn what Pillow raises into a refusal in our words.

    Every Exception, on purpose: Pillow documents no closed list. Damaged and crafted files bring
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
    MemoryError, AssertionError, struct.error and zlib.error, the next release may bring others, and
    none of them must become a 500. Within these blocks nothing is done but have Pillow open, load
    and convert; what we find out ourselves is refused outside.
    """
    try:
        yield
    except Exception as error:
        raise ImageNotDecodable(
            f"the image starts as {form.name} but does not decode: it is truncated, damaged or of a "
            "variant that is not supported; does it open in another program?"
        ) from error


def _silence_pillow() -> None:
    """Ignore Pillow's warnings about odd files, which are refused or taken here, not discussed.

    Python keeps each new text of a warning for ever, and these texts hold numbers that the sender
    chooses. `warnings.catch_warnings` is not safe among threads; this filter is put in front once,
    and again where somebody (a test) has put another before it. Pillow's deprecations are
    attributed to the caller's module, so they still show.
    """
    if warnings.filters[:1] != [_PILLOW_WARNINGS]:
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")


def _check_size(pixels: int, limit: int) -> None:
    """Refuse by the header.

    `Image.MAX_IMAGE_PIXELS` is neither set nor relied upon: it belongs to the whole process, and it
    is checked by `Image.open`, which is passed by (formats are opened by their own class).
    """
    if pixels > limit:
        raise ImageTooLarge(
            f"the image has {pixels} pixels, at most {limit} are allowed; make it smaller",
            limit=limit,
            actual=pixels,
        )


def _load(file: ImageFile.ImageFile, form: Format, body: bytes) -> Image.Image:
    file.load()
    if form.name == "PNG":
        _correct_png_key(file, depth=body[24])
    # The decoders of WebP and AVIF keep two more copies of the picture as long as the file lives.
    return file.copy() if form.name in ("WebP", "AVIF") else file


def _correct_png_key(image: ImageFile.ImageFile, *, depth: int) -> None:
    """Bring PNG's colour key to the depth of the pixels: Pillow changes theirs only."""
    key: Any = image.info.get("transparency")
    if image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    elif image.mode == "L" and isinstance(key, int):
        image.info["transparency"] = key * _PNG_GRAY_KEY_STEP[depth] & 255


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings the picture upright, as `ImageOps.exif_transpose`; TIFF has been turned already.

    Asked after loading, since PNG may carry EXIF behind the pixels. Whatever goes wrong means
    upright: a broken EXIF never refuses a picture. Huge EXIF is not read, as Pillow would make
    a Python object of each value.
    """
    for name in ("exif", "Raw profile type exif"):
        if len(image.info.get(name) or b"") > _MAX_EXIF_BYTES:
            return None
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None
