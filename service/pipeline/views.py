"""Finish for people: draw a picture of one map, or describe maps by statistics."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from service.errors import InvalidParameter, NotCombinable
from service.output import pictures, reduce
from service.output.statistics import describe
from service.parameters import NO_REDUCTION, ON_PHOTOGRAPH, Drawing, Reduction
from service.pipeline.answers import check_worked_on, check_working, too_large, window_of
from service.pipeline.prepare import TensorRequest
from service.pipeline.request import Computation, Encoded, Ready, Windows
from service.values import Array, FeatureMap, Layer

SIMPLER_DRAWING = "style=heatmap without clip, for fewer channels, for a region"


@dataclass(frozen=True)
class PictureAnswer:
    """One map of one image, drawn."""

    drawing: Drawing

    def check(self, computation: Computation, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what cannot be drawn, as far as it is known before the network runs."""
        request, most = computation.request, computation.limits.map_bytes
        if len(layers) != 1:
            raise InvalidParameter(
                f"layer means {len(layers)} layers; a picture shows one: give an exact name",
                parameter="layer",
                limit=1,
                actual=len(layers),
            )
        if images != 1:
            raise NotCombinable(f"a picture shows one image and {images} were sent", limit=1, actual=images)
        if self.drawing.style == "overlay" and isinstance(request, TensorRequest):
            raise NotCombinable("style=overlay needs an image, and a ready tensor was sent")
        self._check_class(request.reduction)
        (layer,) = layers
        reduce.check(layer, request.reduction)
        if request.reduction.region is None or windows:
            check_working(layers, request.reduction, images, windows, most)
            drawn = _drawn_part(layer, request.reduction, windows)
            pictures.check(drawn, self.drawing)
            self._check_held(drawn, most)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Select channels, cut the region, draw."""
        (feature_map,) = maps
        layer = feature_map.layer
        windows = ready.windows.get(layer.name, ())
        with ready.timer.measure("reduce"):
            weights = self._class_weights(ready, layer)
            left = reduce.cut_channels_and_region(feature_map, ready.request.reduction, windows)
            self._check_held(replace(layer, shape=left.values.shape), ready.computation.limits.map_bytes)
        with ready.timer.measure("encode"):
            drawn = pictures.draw(
                left,
                self.drawing,
                window=next(iter(windows), None),
                backdrop=self._backdrop(ready),
                class_weights=weights,
            )
        # Header values are ASCII, and so is every word of the scale.
        told = {"Featuremaps-Scale": json.dumps(dict(drawn.scale), separators=(",", ":"))}
        return Encoded((drawn.body,), drawn.media_type, drawn.extension, told)

    def _check_held(self, drawn: Layer, most: int) -> None:
        check_worked_on(pictures.working_bytes(drawn, self.drawing), most, SIMPLER_DRAWING)

    def _check_class(self, reduction: Reduction) -> None:
        if self.drawing.style != "cam":
            return
        if self.drawing.target is None:
            raise InvalidParameter("style=cam needs target=, a class's index", parameter="target")
        if reduction.channels is not None:
            raise NotCombinable("style=cam adds all channels up: leave channels out")

    def _backdrop(self, ready: Ready) -> pictures.Backdrop | None:
        if self.drawing.style not in ON_PHOTOGRAPH or not ready.source.pictures:
            return None
        return pictures.Backdrop(ready.source.pictures[0], ready.prepared.placements[0])

    def _class_weights(self, ready: Ready, layer: Layer) -> Array | None:
        if self.drawing.style != "cam":
            return None
        assert self.drawing.target is not None
        return ready.model.class_weights(layer.name, self.drawing.target)


@dataclass(frozen=True)
class StatisticsAnswer:
    """Numbers about each map, as JSON."""

    def check(self, computation: Computation, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Text has no statistics."""
        for layer in layers:
            reduce.check(layer, NO_REDUCTION)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Describe every map."""
        who = ready.model.identity
        with ready.timer.measure("reduce"):
            layers = [describe(feature_map) for feature_map in maps]
        with ready.timer.measure("encode"):
            told = {"model": who.name, "version": who.version, "digest": who.digest, "layers": layers}
            body = orjson.dumps({**told, "left_out": ready.left_out})
        most = ready.computation.limits.json_answer_bytes
        if len(body) > most:
            raise too_large(len(maps), len(ready.prepared.tensor), len(body), most)
        return Encoded((body,), "application/json", "json")


def _drawn_part(layer: Layer, reduction: Reduction, windows: Windows) -> Layer:
    """The layer as it is drawn: fewer channels, fewer cells."""
    if layer.shape is None:
        return layer
    shape, channels = list(layer.shape), layer.channels
    chosen = reduction.channels
    if chosen is not None and layer.channel_axis is not None:
        channels = shape[layer.channel_axis] = chosen.top or len(chosen.indices)
    if (window := window_of(layer, windows)) is not None:
        rows, columns = layer.spatial_axes
        shape[rows], shape[columns] = window.height, window.width
    return replace(layer, shape=tuple(shape), channels=channels)
