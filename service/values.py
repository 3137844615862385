"""What a request's data are called on their way: Job, Picture, Prepared, FeatureMap, Payload."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.dtypes import WIDENED

Array = npt.NDArray[Any]
Layout = Literal["NCHW", "NHWC", "NC"]
Fit = Literal["crop", "stretch", "letterbox"]
PadAt = Literal["centre", "top-left"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Color = Literal["rgb", "bgr", "rgba", "gray", "y"]
# Where the size that is served without `size=` comes from.
SizeSource = Literal["graph", "model.toml", "guessed"]
FieldStatus = Literal["exact", "upper_bound", "whole_input", "unknown"]
DtypeChoice = Literal["native", "float32", "float16", "uint8"]
Pool = Literal["none", "avg", "max", "gem"]
Compress = Literal["none", "deflate"]
Style = Literal["grid", "channel", "heatmap", "overlay", "pca", "eigencam", "cam"]
Combine = Literal["mean", "max", "norm"]
Normalize = Literal["layer", "channel", "fixed"]
PictureFormat = Literal["png", "webp", "jpeg"]
Coding = Literal["zstd", "gzip", "deflate"]
Chunk = bytes | memoryview


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright photograph: `image` of Pillow's mode RGB, sRGB, which nobody changes.

    `alpha` is its transparency (mode L) where a network takes that: then `image` is not laid on white.
    `color_profile` says what became of an ICC profile: `ignored` is one that does not parse.
    """

    image: Image.Image
    media_type: str
    color_profile: Literal["none", "srgb", "converted", "ignored"] = "none"
    alpha: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.height, self.image.width

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8, read-only: a copy, made anew each time, since a picture may be kept for long."""
        return np.asarray(self.image)

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8], media_type: str) -> "Picture":
        """A picture of pixels (H, W, 3) uint8."""
        return cls(Image.fromarray(pixels), media_type)


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes what a model was trained on: `x = (pixel * scale - mean) / std`.

    `size` is (H, W) fed to the network; `resize` the short side before a centre crop; `pad_value`
    0..255 fills a letterbox; `mean` and `std` hold one value for each channel, in the order of
    `color`. `images` are stacked along the channels. `source` says where the recipe comes from.
    """

    size: tuple[int, int]
    fit: Fit
    resize: int | None
    pad_value: int
    pad_at: PadAt
    interpolation: Interpolation
    color: Color
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: Literal["model.toml", "default"]
    images: int = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; None stands for a dynamic axis, `shape` None for an unknown rank."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None
    layout: Layout | None = None


@dataclass(frozen=True)
class Placement:
    """Where a photograph lies in the tensor: `tensor_xy = photo_xy * scale + offset`, pixel edges, (y, x)."""

    photo: tuple[int, int]
    scale: tuple[float, float]
    offset: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the network really sees: `tensor` (N, ...) in the graph's layout and dtype.

    `placements` holds one entry an image; it is empty for a ready tensor. `others` are the values of
    further inputs, where they are not the manifest's constants.
    """

    tensor: Array
    placements: tuple[Placement, ...] = ()
    others: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class ReceptiveField:
    """Cell `u` covers the input's pixels `start + u * reduction` to that `+ size - 1`, (y, x)."""

    size: tuple[float, float] | None
    start: tuple[float, float] | None
    status: FieldStatus


@dataclass(frozen=True)
class Layer:
    """One named tensor of a graph that depends on the input; what is unknown is None, never guessed.

    `shape` is for one image at the served size; `cumulative_macs` counts everything that the layer
    needs, once, itself included. `centre` is the input pixel (y, x) in the middle of cell 0.
    `reads` are the layers, or the input, that the layer's node was given. `feature` is the layer's number
    among the network's features, `module` the dotted path of the module that made it. With
    `has_variable_shape` the unknown axes depend on the input's values, not on its shape alone.
    """

    name: str
    index: int
    node: str
    op: str
    shape: tuple[int | None, ...] | None
    dtype: str
    layout: Layout | None
    channel_axis: int | None
    batch_axis: int | None
    channels: int | None
    reduction: tuple[Fraction, Fraction] | None
    receptive_field: ReceptiveField
    centre: tuple[Fraction, Fraction] | None
    macs: int | None
    params: int
    cumulative_macs: int | None
    bytes_per_image: int | None
    stage: int | None
    after_activation: bool
    reads: tuple[str, ...] = ()
    feature: int | None = None
    module: str | None = None
    has_variable_shape: bool = False

    def widened(self) -> "Layer":
        """The layer in a dtype that numpy has, where that holds the same values."""
        if self.dtype not in WIDENED:
            return self
        wide, sizes = WIDENED[self.dtype], self.shape or (None,)
        held = math.prod(size or 0 for size in sizes) * np.dtype(wide).itemsize
        return replace(self, dtype=wide, bytes_per_image=None if None in sizes else held)

    @property
    def has_space(self) -> bool:
        """Whether its maps have rows and columns that are known as such."""
        return self.layout in ("NCHW", "NHWC")

    @property
    def spatial_axes(self) -> tuple[int, int]:
        """The axes of rows and columns."""
        return (2, 3) if self.layout == "NCHW" else (1, 2)


@dataclass(frozen=True)
class Step:
    """A part of a network that is run in one go: from the tensors it reads to those it makes."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What must be computed, step after step, each reading the input or what earlier ones made."""

    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Window:
    """Which cells of a layer's grid a map holds: rows `y` to `y + height`, columns `x` to `x + width`."""

    y: int
    x: int
    height: int
    width: int


@dataclass(frozen=True)
class Channels:
    """Which channels: `indices` as listed, or the `top` ones of each image by mean absolute activation."""

    indices: tuple[int, ...] = ()
    top: int | None = None


@dataclass(frozen=True)
class Region:
    """A part of the upright photograph, in pixels or in percent of its sides."""

    x: float
    y: float
    width: float
    height: float
    percent: bool = False


@dataclass(frozen=True)
class Reduction:
    """What is done to every map, in this order: channels, region, pool or grid, cast."""

    channels: Channels | None = None
    region: Region | None = None
    pool: Pool = "none"
    grid: tuple[int, int] | None = None
    dtype: DtypeChoice = "native"


NO_REDUCTION = Reduction()
# By layer, what of its reduction is done before its map is handed out.
Parts = Mapping[str, Reduction]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A layer's value, axes and layout of the graph, batch axis included.

    `done` is what of a reduction was done to it already.
    """

    layer: Layer
    values: Array
    done: Reduction = NO_REDUCTION


@dataclass(frozen=True)
class Drawing:
    """How a feature map is drawn; None leaves the choice to the drawing.

    `clip` is in percent of the values; `scale` are pixels a cell; `image_weight` 0..1 is the weight
    of the photograph in an overlay; `target` is a class's index.
    """

    style: Style = "grid"
    channel: int | None = None
    combine: Combine = "mean"
    normalize: Normalize = "layer"
    vmin: float | None = None
    vmax: float | None = None
    clip: float = 0.0
    colormap: str | None = None
    columns: int | None = None
    scale: int | None = None
    image_weight: float = 0.5
    target: int | None = None
    format: PictureFormat = "png"


@dataclass(frozen=True)
class StoredImage:
    """An image kept for a while: `id` is the SHA-256 of its bytes, `expires_at` seconds since 1970."""

    id: str
    body: bytes
    media_type: str
    width: int
    height: int
    expires_at: float


@dataclass(frozen=True)
class Output:
    """One output that a v2 request asks for by its exact name.

    `classes` is how many of the highest values are wanted, as text, instead of all.
    """

    name: str
    reduction: Reduction
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, eq=False)
class Inference:
    """What a v2 request sends and asks: `body` is all of it, its JSON part `head_bytes` long.

    `tensors` are by the input's name, texts and encoded images as objects of `bytes`; None is the raw
    request, whose body is the one input. Without `outputs` all declared ones are wanted, as `default` is.
    """

    body: bytes
    head_bytes: int
    id: str | None
    tensors: Mapping[str, Array] | None
    outputs: tuple[Output, ...] | None
    default: Output

    @cached_property
    def _by_name(self) -> Mapping[str, Output]:
        return {output.name: output for output in self.outputs or ()}

    def output_of(self, layer: str) -> Output:
        """What is asked of a layer."""
        return self._by_name.get(layer) or replace(self.default, name=layer)


@dataclass(frozen=True, eq=False)
class Job:
    """What one request asks: images (encoded), a ready tensor (`.npy`) or an inference, and what of them.

    `format` None means the first of all; `coding` is the content coding of the answer.
    `image_id` names a kept image of `owner`, whose maps are worth keeping too.
    """

    model: str
    version: str | None
    images: tuple[bytes, ...]
    tensor: bytes | None
    layers: tuple[str, ...]
    reduction: Reduction = Reduction()
    format: str | None = None
    compress: Compress = "none"
    coding: Coding | None = None
    size: tuple[int, int] | None = None
    image_id: str | None = None
    owner: str = ""
    timeout_s: float = 60.0
    inference: Inference | None = None

    def reduction_of(self, layer: str) -> Reduction:
        """What is done to a layer's map: an inference may ask for each output apart."""
        return self.inference.output_of(layer).reduction if self.inference else self.reduction


@dataclass(frozen=True)
class Identity:
    """Which model this is: name, version, SHA-256 of its files and of its preprocessing."""

    name: str
    version: str
    digest: str
    preprocessing_digest: str


@dataclass(frozen=True, eq=False)
class Payload:
    """An encoded answer in pieces; `timings` in seconds, `coding` was applied to `uncoded_bytes`."""

    chunks: tuple[Chunk, ...]
    media_type: str
    file_name: str
    model: Identity
    timings: Mapping[str, float]
    coding: Coding | None = None
    uncoded_bytes: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    images: int = 1

    @property
    def size(self) -> int:
        """Bytes of the whole answer."""
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True)
class Limits:
    """What one request may cost at most, as the operator set it."""

    body_bytes: int
    pixels: int
    images: int
    answer_bytes: int
    json_answer_bytes: int
    map_bytes: int
    size_pixels: int
    timeout_s: float
    stall_s: float
