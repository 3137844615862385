"""Pixels, or a ready tensor, to what a model takes: its size, channels, numbers and layout."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import Image

from service.errors import MalformedRequest, ShapeMismatch
from service.values import Picture, Placement, Prepared, Preprocessing, TensorSpec

_DTYPES = ("float32", "float16", "float64", "uint8")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_MAX_RESIZED_PIXELS = 2**24
_MAX_FILTERED_SIDE = 2**20
_LONGEST_SIDE = 2**62
_MAX_NPY_HEADER_BYTES = 4096


@dataclass(frozen=True)
class _Fitted:
    """A photograph resized to `resized` (H, W), its corner at `corner` (y, x) of the input."""

    resized: tuple[int, int]
    corner: tuple[int, int]
    fill: int


def preprocess(picture: Picture, recipe: Preprocessing, spec: TensorSpec) -> Prepared:
    """Bring one picture into the form that a model was trained on.

    The channels are chosen first (`gray`: Pillow's L of ITU-R 601, `y`: Y of Pillow's YCbCr), then
    Pillow resizes on uint8, which antialiases when it shrinks (torchvision on PIL images does the
    same), then `x = (pixel * scale - mean) / std` is computed in float64 and rounded to the dtype
    once. For a uint8 input x is rounded to the nearest integer and clipped to 0..255.

    Args:
        picture: upright, sRGB; with its transparency where the recipe's colour is rgba.
        recipe: `mean` and `std` in the order of `color`.
        spec: (N, C, H, W) or (N, H, W, C) by its layout, float32, float16, float64 or uint8.

    Returns:
        `tensor` (1, C, H, W) or (1, H, W, C), C-contiguous and new, with one exact `Placement`; C are the
        channels of one image, also where several are stacked.

    Raises:
        ShapeMismatch: the input's dtype, layout or fixed shape is not what the recipe makes.
    """
    shape = _tensor_shape(recipe, spec, len(recipe.mean))
    photo = picture.size
    fitted = _fit(photo, recipe)
    pixels = _render(_channels(picture, recipe), fitted, recipe)
    tables = _tables(recipe.scale, recipe.mean, recipe.std, spec.dtype)
    tensor = np.empty(shape, spec.dtype)
    planes = tensor[0] if spec.layout == "NCHW" else np.moveaxis(tensor[0], -1, 0)
    for channel, (table, plane) in enumerate(zip(tables, planes, strict=True)):
        # With mode="clip" numpy writes into `out` directly; every uint8 is a valid index anyway.
        table.take(pixels[..., channel], out=plane, mode="clip")
    return Prepared(tensor, (_placement(photo, fitted),))


def _tensor_shape(recipe: Preprocessing, spec: TensorSpec, channels: int) -> tuple[int, ...]:
    if spec.dtype not in _DTYPES:
        raise ShapeMismatch(
            f"the model's input {spec.name!r} has dtype {spec.dtype}; images can be sent to inputs "
            f"of {', '.join(_DTYPES)}, this one takes a ready tensor (application/x-npy)"
        )
    height, width = recipe.size
    if spec.layout == "NCHW":
        shape: tuple[int, ...] = (1, channels, height, width)
    elif spec.layout == "NHWC":
        shape = (1, height, width, channels)
    else:
        raise ShapeMismatch(
            f"the model's input {spec.name!r} is not laid out as NCHW or NHWC images; "
            "send it a ready tensor (application/x-npy)"
        )
    allowed = _of_one_image(spec, recipe.images)
    if allowed is not None and not _fits(shape[1:], allowed[1:]):
        raise ShapeMismatch(
            f"the preprocessing makes a tensor of shape {_text(shape)}, the model's input "
            f"{spec.name!r} is {_text(allowed)}",
            given=list(shape),
            allowed=list(allowed),
        )
    return shape


def _of_one_image(spec: TensorSpec, images: int) -> tuple[int | None, ...] | None:
    """The input's shape for one of the images that are stacked along its channels."""
    if spec.shape is None or images == 1:
        return spec.shape
    axis = 1 if spec.layout == "NCHW" else 3
    channels = spec.shape[axis]
    one = None if channels is None else channels // images
    return (*spec.shape[:axis], one, *spec.shape[axis + 1 :])


def stack(parts: Sequence[Prepared], spec: TensorSpec) -> Prepared:
    """Several images as one input, their channels one after the other; a region means the first image's."""
    axis = 1 if spec.layout == "NCHW" else 3
    tensor = np.concatenate([part.tensor for part in parts], axis=axis)
    return Prepared(np.ascontiguousarray(tensor), parts[0].placements)


def _fits(shape: tuple[int, ...], allowed: tuple[int | None, ...]) -> bool:
    return len(shape) == len(allowed) and all(
        fixed is None or side == fixed for side, fixed in zip(shape, allowed, strict=True)
    )


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"


def _fit(photo: tuple[int, int], recipe: Preprocessing) -> _Fitted:
    match recipe.fit:
        case "stretch":
            return _Fitted(recipe.size, (0, 0), 0)
        case "letterbox":
            return _letterbox(photo, recipe)
        case "crop":
            short = recipe.resize
            resized = _cover(photo, recipe.size) if short is None else _short_side(photo, short)
            return _Fitted(resized, _centre_crop(resized, recipe.size), 0)
        case _:
            assert_never(recipe.fit)


def _short_side(photo: tuple[int, int], short: int) -> tuple[int, int]:
    """The long side to the nearest pixel; torchvision truncates it, which bends the picture more."""
    height, width = photo
    if width <= height:
        return round(short * height / width), short
    return short, round(short * width / height)


def _cover(photo: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the photograph's shape that covers `size`, in whole numbers."""
    (height, width), (wanted_height, wanted_width) = photo, size
    if wanted_width * height >= wanted_height * width:
        return max(wanted_height, height * wanted_width // width), wanted_width
    return wanted_height, max(wanted_width, width * wanted_height // height)


def _centre_crop(resized: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """`torchvision.transforms.functional.center_crop`: half to even, black where it falls short."""
    y, x = (_centre(have, want) for have, want in zip(resized, size, strict=True))
    return y, x


def _centre(have: int, want: int) -> int:
    return (want - have) // 2 if want > have else -round((have - want) / 2.0)


def _letterbox(photo: tuple[int, int], recipe: Preprocessing) -> _Fitted:
    """YOLOX's `preproc`: one ratio for both sides, each cut to a whole number of pixels.

    https://github.com/Megvii-BaseDetection/YOLOX/blob/main/yolox/data/data_augment.py
    """
    (height, width), (rows, columns) = photo, recipe.size
    ratio = min(rows / height, columns / width)
    resized = max(1, int(height * ratio)), max(1, int(width * ratio))
    if recipe.pad_at == "top-left":
        return _Fitted(resized, (0, 0), recipe.pad_value)
    return _Fitted(resized, ((rows - resized[0]) // 2, (columns - resized[1]) // 2), recipe.pad_value)


def _placement(photo: tuple[int, int], fitted: _Fitted) -> Placement:
    scale = fitted.resized[0] / photo[0], fitted.resized[1] / photo[1]
    return Placement(photo, scale, (float(fitted.corner[0]), float(fitted.corner[1])))


def _channels(picture: Picture, recipe: Preprocessing) -> Image.Image:
    image = picture.image
    match recipe.color:
        case "rgba":
            return Image.merge("RGBA", [*image.split(), picture.alpha or Image.new("L", image.size, 255)])
        case "gray":
            return image.convert("L")
        case "y":
            return image.convert("YCbCr").getchannel("Y")
        case _:
            return image


def _render(image: Image.Image, fitted: _Fitted, recipe: Preprocessing) -> npt.NDArray[np.uint8]:
    """Draw what of the resized photograph is seen in the input: (H, W, C) uint8."""
    (rows, columns), (y, x), (high, wide) = recipe.size, fitted.corner, fitted.resized
    window = (max(0, -x), max(0, -y), min(wide, columns - x), min(high, rows - y))
    seen = np.asarray(_resize(image, fitted.resized, window, recipe))
    seen = seen.reshape(*seen.shape[:2], -1)
    if recipe.color == "bgr":
        seen = seen[..., ::-1]
    if seen.shape[:2] == recipe.size:
        return seen
    canvas = np.full((rows, columns, seen.shape[2]), fitted.fill, np.uint8)
    top, left = max(0, y), max(0, x)
    canvas[top : top + seen.shape[0], left : left + seen.shape[1]] = seen
    return canvas


def _resize(
    image: Image.Image,
    resized: tuple[int, int],
    window: tuple[int, int, int, int],
    recipe: Preprocessing,
) -> Image.Image:
    """Resize to `resized` (H, W) and cut `window` (left, top, right, bottom) out of it.

    Resizing only the part that is kept, by `box=`, is not bit-identical to cutting afterwards (off
    by up to 2 of 255, more where edges are hard), so that is done only where the whole would take
    more than 16 megapixels: the short side of a long strip brought to 256. A side of more than a
    million pixels is first averaged down by a whole factor, since Pillow's table of weights
    grows with it (0.8 GB for 50 million); no camera makes such pictures.
    """
    high, wide = resized
    filter_ = _FILTERS[recipe.interpolation]
    gap = 4.0 if max(image.size) > _MAX_FILTERED_SIDE else None
    if high * wide <= _MAX_RESIZED_PIXELS:
        if image.size != (wide, high):
            image = image.resize((wide, high), filter_, reducing_gap=gap)
        return image if window == (0, 0, wide, high) else image.crop(window)
    left, top, right, bottom = window
    x, y = image.width / wide, image.height / high
    box = (left * x, top * y, min(right * x, image.width), min(bottom * y, image.height))
    return image.resize((right - left, bottom - top), filter_, box, reducing_gap=gap)


@lru_cache(maxsize=64)
def _tables(scale: float, mean: tuple[float, ...], std: tuple[float, ...], dtype: str) -> npt.NDArray[Any]:
    """The recipe's number for each channel and pixel value: (C, 256) of `dtype`, read-only."""
    pixel = np.arange(256, dtype=np.float64)
    exact = (pixel * scale - np.array(mean)[:, None]) / np.array(std)[:, None]
    if dtype == "uint8":
        exact = np.rint(exact).clip(0, 255)
    with np.errstate(over="ignore"):  # a number beyond float16 is infinity there, as in the graph
        tables: npt.NDArray[Any] = exact.astype(dtype)
    tables.flags.writeable = False
    return tables


def read_tensor(body: bytes, spec: TensorSpec) -> Prepared:
    """Read a ready `.npy` body in the graph's own layout and dtype.

    The leading batch axis may be left out where it is 1 or dynamic, and may hold several images
    then. Big-endian and Fortran-ordered arrays are converted; otherwise the tensor is a read-only
    view of the body. Nothing is unpickled, and nothing is allocated before the sizes agree.

    Returns:
        `tensor` (N, ...), C-contiguous, aligned, of the native byte order, without placements.

    Raises:
        MalformedRequest: not a `.npy` file of version 1 or 2, a header that is too long or does
            not parse, Python objects inside, or more or fewer bytes than shape and dtype need.
        ShapeMismatch: another dtype, rank or fixed side than the model's, or an empty axis.
    """
    file = BytesIO(body)
    shape, fortran_order, dtype = _read_header(file)
    start = file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if len(body) - start != needed:
        raise MalformedRequest(
            f"the .npy header announces {needed} bytes of data, {len(body) - start} follow"
        )
    _check_dtype(dtype, spec)
    shape = _with_batch_axis(shape, spec)
    flat = np.frombuffer(body, dtype, offset=start)
    values = flat.reshape(shape, order="F" if fortran_order else "C")
    native = values.astype(spec.dtype, copy=False)
    return Prepared(np.require(native, requirements=["C_CONTIGUOUS", "ALIGNED"]))


def _read_header(file: BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Every Exception is a malformed header: numpy evaluates it as a Python literal.

    That raises whatever the parser has for hostile text (RecursionError and MemoryError among it).
    """
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran_order, dtype = read(file, max_header_size=_MAX_NPY_HEADER_BYTES)
    except Exception as error:
        raise MalformedRequest(
            "the tensor is not a .npy file of version 1.0 or 2.0; write it with numpy.save(file, array)"
        ) from error
    if not all(type(side) is int and side <= _LONGEST_SIDE for side in shape):
        raise MalformedRequest("the .npy header announces a side that is no number, or that no memory has")
    if dtype.hasobject or any(side < 0 for side in shape):
        raise MalformedRequest("a .npy file of Python objects or negative sides is not a tensor")
    return shape, fortran_order, dtype


def _check_dtype(dtype: np.dtype[Any], spec: TensorSpec) -> None:
    if dtype.newbyteorder("=").name != spec.dtype:
        raise ShapeMismatch(
            f"the tensor has dtype {dtype.newbyteorder('=').name}, the model's input "
            f"{spec.name!r} takes {spec.dtype}",
            given=dtype.newbyteorder("=").name,
            allowed=spec.dtype,
        )


def _with_batch_axis(shape: tuple[int, ...], spec: TensorSpec) -> tuple[int, ...]:
    allowed = spec.shape
    if allowed is not None and len(shape) == len(allowed) - 1 and allowed[0] in (1, None):
        shape = (1, *shape)
    if shape and 0 not in shape and (allowed is None or _fits(shape, _any_batch(allowed))):
        return shape
    raise ShapeMismatch(
        f"the tensor has shape {_text(shape)}, the model's input {spec.name!r} is "
        f"{'of any rank' if allowed is None else _text(allowed)}; a batch axis leads, no side is 0",
        given=list(shape),
        allowed=None if allowed is None else list(allowed),
    )


def _any_batch(allowed: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """A batch fixed to 1 takes several images all the same: the engine runs them one by one."""
    return (None, *allowed[1:]) if allowed[:1] == (1,) else allowed
