"""From whatever mode a decoder gives to sRGB: palettes, transparency, deep gray, ICC profiles.

Colour spaces named otherwise than by an ICC profile (PNG's gAMA, cHRM and cICP, AVIF's nclx, the
EXIF interoperability tag) are not converted, as Pillow, torchvision and timm do not either.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from io import BytesIO
from threading import Lock
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageCms

ProfileVerdict = Literal["none", "srgb", "converted", "ignored"]

# The largest printing profiles in use (FOGRA, GRACoL, SWOP) have 0.5 to 3 MB.
_MAX_PROFILE_BYTES = 4 * 2**20
_MAX_CONVERSIONS = 32
_SRGB_TOLERANCE = 2
_STRIP_PIXELS = 4_000_000

_DEEP_MODES = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I", "F"))
_PLAIN_MODE = {
    "1": "L",
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
}
_TIFF_BITS_PER_SAMPLE = 258


def to_srgb(
    image: Image.Image, *, profile: object, keep_alpha: bool = False
) -> tuple[Image.Image, ProfileVerdict, Image.Image | None]:
    """Turn a loaded picture of any mode into mode RGB, and say what became of its ICC profile.

    Transparency is composited on white, what a page or a viewer shows. Dropping alpha, as
    `convert("RGB")` does, shows whatever colour lies under transparent pixels: a black drawing on
    a transparent ground becomes a black rectangle. Photographs carry no alpha, so training
    pipelines, which drop it, agree wherever they saw any. `profile` is what stands in `info`, not
    trusted to be bytes. An RGB picture without alpha and profile is returned itself, not a copy.
    With `keep_alpha` nothing is composited, and the transparency (mode L) is returned too.
    """
    plain = _plain(image)
    alpha = _visible_alpha(plain)
    if plain.mode in ("LA", "RGBA"):
        plain = plain.convert(plain.mode[:-1])
    rgb, verdict = _convert_profile(plain, profile)
    if rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if keep_alpha:
        return rgb, verdict, alpha
    if alpha is not None:
        rgb.paste((255, 255, 255), None, ImageChops.invert(alpha))
    return rgb, verdict, None


def strips(image: Image.Image) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    """Give (first row, rows as an array): `asarray` of the whole holds the pixels three times."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield top, np.asarray(image.crop(box))


def _plain(image: Image.Image) -> Image.Image:
    """L, LA, RGB, RGBA or CMYK; a colour key becomes alpha."""
    key = _transparent_key(image)
    if image.mode in _DEEP_MODES:
        return _shallow(image, key)
    if image.mode == "P":
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if key is not None:
        return image.convert("RGBA" if image.mode == "RGB" else "LA")
    mode = _PLAIN_MODE.get(image.mode)
    return image if mode is None else image.convert(mode)


def _transparent_key(image: Image.Image) -> object:
    """The colour that stands for transparent, of the right type, or None.

    A text chunk of the name "transparency" lands in `info` too; what cannot be a key is removed, or
    Pillow would stumble over it.
    """
    key = image.info.get("transparency")
    allowed = {"P": (int, bytes), "RGB": (tuple,)}.get(image.mode, (int,))
    if isinstance(key, allowed) and image.mode in ("1", "L", "P", "RGB", "I;16"):
        return key
    image.info.pop("transparency", None)
    return None


def _visible_alpha(image: Image.Image) -> Image.Image | None:
    if image.mode not in ("LA", "RGBA"):
        return None
    alpha = image.getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def _shallow(image: Image.Image, key: object) -> Image.Image:
    """Scale gray of 16 or 32 bits to 8, rounding to nearest; `convert` would clip at 255 instead.

    16 bits unsigned: 0..65535 (0..4095 in a 12-bit TIFF) to 0..255. 32-bit integers and floats say
    nothing about their white: the smallest of 0..1 (floats only), 0..255 and 0..65535 that holds
    all finite values is taken, otherwise the range between their minimum and maximum. NaN is black.
    """
    black, white = _range_of(image)
    gray = np.empty((image.height, image.width), np.uint8)
    for top, rows in strips(image):
        scaled = np.subtract(rows, black, dtype=np.float64)
        scaled *= 255 / (white - black)
        np.nan_to_num(scaled, copy=False, nan=0, posinf=255, neginf=0)
        gray[top : top + len(rows)] = np.rint(scaled.clip(0, 255, out=scaled), out=scaled)
    shallow = Image.fromarray(gray)
    if key is not None:
        shallow.putalpha(_key_mask(image, key))
    return shallow


def _key_mask(image: Image.Image, key: object) -> Image.Image:
    mask = np.empty((image.height, image.width), np.uint8)
    for top, rows in strips(image):
        mask[top : top + len(rows)] = np.where(rows == key, 0, 255)
    return Image.fromarray(mask)


def _range_of(image: Image.Image) -> tuple[float, float]:
    if image.mode not in ("I", "F"):
        bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE)
        return 0.0, 4095.0 if bits == (12,) else 65535.0
    low, high = _finite_extrema(image)
    for white in (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return (low, high) if low < high else (low, low + 1)


def _finite_extrema(image: Image.Image) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for _, rows in strips(image):
        finite = rows[np.isfinite(rows)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 1.0)


def _convert_profile(image: Image.Image, profile: object) -> tuple[Image.Image, ProfileVerdict]:
    if not profile:
        return image, "none"
    if not isinstance(profile, bytes) or len(profile) > _MAX_PROFILE_BYTES:
        return image, "ignored"
    conversion = _CONVERSIONS.find(profile, image.mode)
    if not isinstance(conversion, ImageCms.ImageCmsTransform):
        return image, conversion
    return conversion.apply(image), "converted"


class _Conversions:
    """What was found out about the latest profiles, by digest, so that no upload is kept itself."""

    def __init__(self) -> None:
        self._found: OrderedDict[
            tuple[bytes, str], ImageCms.ImageCmsTransform | Literal["srgb", "ignored"]
        ] = OrderedDict()
        self._lock = Lock()

    def find(self, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | Literal["srgb", "ignored"]:
        """Look a profile up, or build its conversion from `mode` (RGB, L or CMYK)."""
        key = hashlib.sha256(profile).digest(), mode
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        conversion = _build(profile, mode)
        with self._lock:
            self._found[key] = conversion
            while len(self._found) > _MAX_CONVERSIONS:
                self._found.popitem(last=False)
        return conversion


_CONVERSIONS = _Conversions()
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _build(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | Literal["srgb", "ignored"]:
    """Build the perceptual conversion to sRGB.

    Perceptual is the ICC's intent for photographs and what browsers and Pillow use; profiles made
    of a matrix and curves (Display P3, Adobe RGB) have one intent only, so it matters for print.
    """
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        conversion = ImageCms.ImageCmsTransform(source, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return "srgb" if _changes_nothing(conversion, mode) else conversion
    except Exception:
        # A picture is more than its profile. lcms refuses what is damaged and what is for another
        # number of channels; Pillow passes that on as OSError, PyCMSError, ValueError or TypeError.
        return "ignored"


def _changes_nothing(conversion: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell sRGB by what it does: names lie, and there are dozens of sRGB profiles."""
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = cube if mode == "RGB" else cube[..., 0]
    seen = np.asarray(conversion.apply(Image.fromarray(np.ascontiguousarray(probe))))
    wanted = cube if mode == "RGB" else np.repeat(probe[..., None], 3, axis=-1)
    return int(np.abs(seen.astype(np.int16) - wanted).max()) <= _SRGB_TOLERANCE
