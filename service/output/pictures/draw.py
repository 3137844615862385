"""The drawing of a feature map: values to planes, planes to levels, levels to a picture's bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from service.errors import NotDrawable
from service.output.pictures.checks import check, mosaic_of
from service.output.pictures.colormaps import SIGNED, UNSIGNED, find_colormap, palette
from service.output.pictures.components import color_by_components, eigencam
from service.output.pictures.files import FILES, Canvas
from service.output.pictures.mosaic import Mosaic, assemble, draw_bars
from service.output.pictures.overlay import Backdrop, blend, place
from service.output.pictures.planes import channels_of, combine, weigh
from service.output.pictures.scales import Floats, Scale, count_non_finite, find_scale, fractions, levels
from service.output.window import has_place
from service.parameters import ON_PHOTOGRAPH, Drawing, Style
from service.values import Array, FeatureMap, Layer, Window

_LONGEST_NAME = 100


@dataclass(frozen=True)
class Drawn:
    """A picture's file; `scale` are the words that stand in its text fields too, all ASCII."""

    body: bytes
    media_type: str
    extension: str
    scale: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is drawn: `channels` (C, H, W) float32 of `layer`, whose shape is the map's."""

    layer: Layer
    channels: npt.NDArray[np.float32]
    drawing: Drawing
    weights: Array | None

    @property
    def mosaic(self) -> Mosaic:
        vector = self.layer.layout == "NC"
        return mosaic_of(self.channels.shape[:1] if vector else self.channels.shape, self.drawing)


def draw(
    feature_map: FeatureMap,
    drawing: Drawing,
    *,
    window: Window | None = None,
    backdrop: Backdrop | None = None,
    class_weights: Array | None = None,
) -> Drawn:
    """Draw one image's feature map; the same values and drawing give the same bytes.

    Channels are counted as the map holds them. A palette's index is the level: 0 to 254 from the
    scale's start to its end, 255 for gaps and NaN. `overlay` needs a backdrop; `eigencam` and `cam`
    are laid on one that is given, where the layer's geometry is known, and else drawn by themselves.
    `cam` shows evidence for the class, zero and evidence against it being black, unless
    `normalize=fixed` asks for both.

    Args:
        feature_map: values (1, ...) of any real dtype, in the layer's layout.
        window: which cells of the layer the map holds; None for all.
        class_weights: (C,), one class's weights, for `cam`.

    Raises:
        NotDrawable, InvalidParameter, NotCombinable: as `check`, for the map as it is; and no
            backdrop, no weights, or not one for each channel.
    """
    values = feature_map.values
    layer = replace(feature_map.layer, shape=values.shape, dtype=values.dtype.name)
    check(layer, drawing)
    channels = channels_of(FeatureMap(layer, values))
    subject = _Subject(layer, channels, drawing, class_weights)
    if drawing.style == "overlay" and backdrop is None:
        raise NotDrawable("style=overlay needs a photograph, and a tensor was sent: style=heatmap needs none")
    if drawing.style == "pca":
        canvas, words = _draw_components(subject)
    elif backdrop and drawing.style in ON_PHOTOGRAPH and has_place(layer):
        canvas, words = _draw_on_photograph(subject, backdrop, window)
    else:
        canvas, words = _draw_tiles(subject)
    words = _words(subject) | words
    file = FILES[drawing.format]
    return Drawn(file.encode(canvas, words), file.media_type, file.extension, words)


def _draw_tiles(subject: _Subject) -> tuple[Canvas, dict[str, str]]:
    planes, scale = _scaled(subject)
    t = fractions(planes, scale)
    tiles, mosaic = levels(t), subject.mosaic
    if subject.layer.layout == "NC":
        tiles = draw_bars(t, tiles, scale.zero)
    name = _colormap(subject.drawing, scale)
    canvas = Canvas(assemble(tiles, mosaic), palette(name), max(mosaic.scale) > 1)
    return canvas, _scale_words(scale, name) | _mosaic_words(mosaic)


def _draw_on_photograph(
    subject: _Subject, backdrop: Backdrop, window: Window | None
) -> tuple[Canvas, dict[str, str]]:
    planes, scale = _scaled(subject)
    photo, heat = place(fractions(planes, scale)[0], backdrop, subject.layer, window)
    name = _colormap(subject.drawing, scale)
    colors = palette(name)[levels(heat)]
    weight = subject.drawing.image_weight
    words = _scale_words(scale, name) | {"image_weight": _number(weight)}
    return Canvas(blend(photo, colors, ~np.isnan(heat), weight)), words


def _draw_components(subject: _Subject) -> tuple[Canvas, dict[str, str]]:
    mosaic = subject.mosaic
    down, right = mosaic.scale
    pixels = color_by_components(subject.channels).repeat(down, axis=0).repeat(right, axis=1)
    words = {"components": "sigmoid(2 p), p whitened"}
    return Canvas(pixels, enlarged=down > 1), words | _mosaic_words(mosaic)


def _scaled(subject: _Subject) -> tuple[Floats, Scale]:
    """The planes of the style and their scale; a single channel has the whole layer's."""
    planes = _PLANES[subject.drawing.style](subject)
    of_layer = subject.drawing.style == "channel" and subject.drawing.normalize == "layer"
    measured = subject.channels if of_layer else planes
    return planes, find_scale(measured, subject.drawing, after_activation=subject.layer.after_activation)


def _one_channel(subject: _Subject) -> Floats:
    channel = subject.drawing.channel
    assert channel is not None
    return subject.channels[channel : channel + 1]


def _combined(subject: _Subject) -> Floats:
    return combine(subject.channels, subject.drawing.combine)


def _class_activation(subject: _Subject) -> Floats:
    if subject.weights is None:
        raise NotDrawable(
            f"style=cam needs a class's weights for layer {subject.layer.name!r}, and there are none: "
            "style=eigencam needs none"
        )
    plane = weigh(subject.channels, subject.weights)
    if subject.drawing.normalize != "fixed":
        np.maximum(plane, 0, out=plane)
    return plane


_PLANES: dict[Style, Callable[[_Subject], Floats]] = {
    "grid": lambda subject: subject.channels,
    "channel": _one_channel,
    "heatmap": _combined,
    "overlay": _combined,
    "eigencam": lambda subject: eigencam(subject.channels),
    "cam": _class_activation,
}


def _colormap(drawing: Drawing, scale: Scale) -> str:
    return find_colormap(drawing.colormap or (SIGNED if scale.signed else UNSIGNED))


def _words(subject: _Subject) -> dict[str, str]:
    drawing = subject.drawing
    words = {
        # A name may hold anything; percent signs keep it ASCII and on one line.
        "layer": quote(subject.layer.name[:_LONGEST_NAME], errors="replace"),
        "style": drawing.style,
        "channels": str(len(subject.channels)),
        "normalize": drawing.normalize,
        "clip": _number(drawing.clip),
        "non_finite": str(count_non_finite(subject.channels)),
    }
    if drawing.style in ("heatmap", "overlay"):
        words["combine"] = drawing.combine
    for name, value in (("channel", drawing.channel), ("target", drawing.target)):
        if value is not None:
            words[name] = str(value)
    return words


def _scale_words(scale: Scale, colormap: str) -> dict[str, str]:
    shared = scale.high.size == 1
    return {
        "vmin": _number(scale.low.item()) if shared else "-max of channel" if scale.signed else "0",
        "vmax": _number(scale.high.item()) if shared else "max of channel",
        "min": _number(scale.smallest),
        "max": _number(scale.largest),
        "colormap": colormap,
    }


def _mosaic_words(mosaic: Mosaic) -> dict[str, str]:
    return {"columns": str(mosaic.columns), "scale": str(mosaic.scale[1])}


def _number(value: float) -> str:
    """Nine digits: enough to find a float32 again."""
    return f"{value:.9g}"
