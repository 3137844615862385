"""What is refused before a network runs: whatever a layer and a drawing tell by themselves."""

import math

from service.declarations import STYLES, read, schema_of
from service.errors import InvalidParameter, NotCombinable, NotDrawable
from service.output.pictures.colormaps import find_colormap
from service.output.pictures.components import MAX_SIDE, MAX_WORK
from service.output.pictures.files import refuse_side
from service.output.pictures.mosaic import Mosaic, lay_out, lay_out_bars
from service.output.pictures.planes import extent
from service.output.window import has_place
from service.parameters import Drawing, PictureFormat
from service.values import Layer

MAX_PIXELS = 16_000_000
# Bytes that drawing holds at one time, at most; a test measures them. Of each value:
_AS_FLOAT32 = 4
_FINITE = 6  # those that are finite, and a mask
_CLIPPED = 13  # and as float64, for the percentile
_CENTRED = 14  # as float64, and masks
_TILED = 24  # as a fraction, its level as float64, and tiles
# Of each cell of the only plane, and with three scores; of each product of two channels, three matrices.
_PLANE, _SCORED = 36, 108
_PRODUCT = 24
# Any other parameter that would change nothing is refused.
_PASSED_OVER = ("combine", "image_weight")


def check(layer: Layer, drawing: Drawing) -> None:
    """Refuse what cannot be drawn, as far as it is known without the values.

    `layer` is what will be drawn: where channels or a region are selected first, the caller passes
    it with the `channels` and `shape` that will be left.

    Raises:
        NotDrawable: the layer is no map of this kind, or the picture would be too large.
        InvalidParameter: a parameter is out of its bounds.
        NotCombinable: a parameter that this style or scale has no use for.
    """
    known = extent(layer)
    _check_style(layer, drawing)
    _check_use(drawing)
    read(Drawing, vars(drawing))
    _check_range(drawing)
    if drawing.colormap is not None:
        find_colormap(drawing.colormap)
    _check_channel(layer, known[0], drawing)
    size = tuple(side for side in known if side is not None)
    if len(size) == len(known):
        _check_size(layer, size, drawing)


def working_bytes(layer: Layer, drawing: Drawing) -> int:
    """Bytes that `draw` holds at most beside the map, the picture and the photograph.

    `layer` is as for `check`, which has taken it. 0 where a shape is known only when it runs.
    """
    size = extent(layer)
    if None in size:
        return 0
    channels, *sides = (side or 0 for side in size)
    cells = math.prod(sides)
    values = channels * cells
    work = values * (_CLIPPED if drawing.clip else _FINITE)
    if drawing.style == "grid":
        work = max(work, values * _TILED)
    elif drawing.style in ("pca", "eigencam"):
        work = max(work, values * _CENTRED + min(channels, cells) ** 2 * _PRODUCT)
    if drawing.style != "grid":
        work += cells * (_SCORED if drawing.style == "pca" else _PLANE)
    return work + (0 if layer.dtype == "float32" else values * _AS_FLOAT32)


def mosaic_of(size: tuple[int, ...], drawing: Drawing) -> Mosaic:
    """The mosaic for (C, H, W) or (C,); every style but `grid` draws a single tile."""
    if len(size) == 1:
        return lay_out_bars(size[0], drawing)
    return lay_out(size[0] if drawing.style == "grid" else 1, (size[1], size[2]), drawing)


def _check_style(layer: Layer, drawing: Drawing) -> None:
    if layer.layout == "NC" and drawing.style != "grid":
        raise NotDrawable(
            f"layer {layer.name!r} holds one value a channel and no space: style=grid draws it as bars"
        )
    if drawing.style == "overlay" and not has_place(layer):
        raise NotDrawable(
            f"it is not known where the cells of layer {layer.name!r} lie in the image: "
            "style=heatmap draws it by itself"
        )


def _check_use(drawing: Drawing) -> None:
    for name, declared in schema_of(Drawing).items():
        styles = declared.get(STYLES)
        if styles is None or drawing.style in styles or name in _PASSED_OVER:
            continue
        if getattr(drawing, name) != declared.get("default"):
            raise NotCombinable(
                f"{name}= has no meaning for style={drawing.style}; it is for style={'|'.join(styles)}",
                parameter=name,
            )
    if drawing.clip and drawing.normalize == "fixed":
        raise NotCombinable("clip= has no meaning for normalize=fixed", parameter="clip")


def _check_range(drawing: Drawing) -> None:
    given = drawing.vmin is not None, drawing.vmax is not None
    if drawing.normalize != "fixed":
        if any(given):
            raise NotCombinable(
                f"vmin= and vmax= are for normalize=fixed, and normalize={drawing.normalize}",
                parameter="vmin" if given[0] else "vmax",
            )
        return
    if drawing.vmin is None or drawing.vmax is None:
        missing = "vmax" if given[0] else "vmin"
        raise InvalidParameter(
            f"normalize=fixed needs vmin= and vmax=; {missing}= is missing", parameter=missing
        )
    if drawing.vmin >= drawing.vmax:
        raise InvalidParameter(f"vmin={drawing.vmin:g} is not below vmax={drawing.vmax:g}", parameter="vmin")


def _check_channel(layer: Layer, channels: int | None, drawing: Drawing) -> None:
    if drawing.style != "channel":
        return
    if drawing.channel is None:
        raise InvalidParameter("style=channel needs channel=", parameter="channel")
    if channels is not None and drawing.channel >= channels:
        raise InvalidParameter(
            f"layer {layer.name!r} has no channel {drawing.channel}; its channels are 0 to {channels - 1}",
            parameter="channel",
            limit=channels - 1,
            actual=drawing.channel,
        )


def _check_size(layer: Layer, size: tuple[int, ...], drawing: Drawing) -> None:
    if drawing.style in ("pca", "eigencam"):
        _check_work(layer, size)
    if drawing.style == "overlay":
        return
    refuse_size(f"layer {layer.name!r}", mosaic_of(size, drawing).size, drawing.format)


def refuse_size(subject: str, size: tuple[int, int], name: PictureFormat) -> None:
    """Refuse a picture (y, x) that is too large to be drawn, or for its format.

    Raises:
        NotDrawable
    """
    height, width = size
    if height * width > MAX_PIXELS:
        raise NotDrawable(
            f"the picture of {subject} would be {width} x {height} pixels, {height * width} in "
            f"all, and at most {MAX_PIXELS} are drawn: ask for a smaller scale, fewer channels or a region",
            limit=MAX_PIXELS,
            actual=height * width,
        )
    refuse_side(size, name)


def _check_work(layer: Layer, size: tuple[int, ...]) -> None:
    channels, cells = size[0], size[1] * size[2]
    side = min(channels, cells)
    if side > MAX_SIDE or channels * cells * side > MAX_WORK:
        raise NotDrawable(
            f"layer {layer.name!r} with {channels} channels of {cells} cells is too large for components: "
            f"select fewer channels, a region or a deeper layer, or ask for style=heatmap",
            limit=MAX_SIDE if side > MAX_SIDE else MAX_WORK,
            actual=side if side > MAX_SIDE else channels * cells * side,
        )
