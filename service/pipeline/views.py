"""FINISH for people: pictures of one map, and statistics."""

import json
from collections.abc import Sequence
from dataclasses import replace

import orjson

from service.errors import InvalidParameter, NotCombinable
from service.output import pictures, reduce
from service.output.statistics import describe
from service.parameters import NO_REDUCTION, ON_PHOTOGRAPH, Drawing
from service.pipeline.answers import Encoded, check_worked_on, check_working, too_large, window_of
from service.pipeline.prepare import Ready, Windows
from service.values import Array, FeatureMap, Job, Layer, Limits

SIMPLER_DRAWING = "style=heatmap without clip, for fewer channels, for a region"


class PictureAnswer:
    """One map of one image, drawn."""

    def __init__(self, job: Job, drawing: Drawing, *, limits: Limits) -> None:
        self._job = job
        self._drawing = drawing
        self._limits = limits

    def check(self, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what cannot be drawn, as far as it is known before the network runs."""
        if len(layers) != 1:
            raise InvalidParameter(
                f"layer means {len(layers)} layers; a picture shows one: give an exact name",
                parameter="layer",
                limit=1,
                actual=len(layers),
            )
        if images != 1:
            raise NotCombinable(f"a picture shows one image and {images} were sent", limit=1, actual=images)
        if self._drawing.style == "overlay" and self._job.tensor is not None:
            raise NotCombinable("style=overlay needs a photograph, and a ready tensor was sent")
        self._check_class()
        (layer,) = layers
        reduce.check(layer, self._job.reduction)
        if self._job.reduction.region is None or windows:
            check_working(layers, self._job.reduction, images, windows, self._limits.map_bytes)
            left = _left(layer, self._job, windows)
            pictures.check(left, self._drawing)
            self._check_held(left)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Select channels, cut the region, draw."""
        (feature_map,) = maps
        layer, job = feature_map.layer, ready.job
        windows = ready.windows.get(layer.name, ())
        with ready.watch.measure("reduce"):
            weights = self._class_weights(ready, layer)
            left = reduce.cut_channels_and_region(feature_map, job.reduction, windows)
            self._check_held(replace(layer, shape=left.values.shape))
        with ready.watch.measure("encode"):
            drawn = pictures.draw(
                left,
                self._drawing,
                window=next(iter(windows), None),
                backdrop=self._backdrop(ready),
                class_weights=weights,
            )
        # Header values are ASCII, and so is every word of the scale.
        told = {"Featuremaps-Scale": json.dumps(dict(drawn.scale), separators=(",", ":"))}
        return Encoded((drawn.body,), drawn.media_type, drawn.extension, told)

    def _check_held(self, left: Layer) -> None:
        held = pictures.working_bytes(left, self._drawing)
        check_worked_on(held, self._limits.map_bytes, SIMPLER_DRAWING)

    def _check_class(self) -> None:
        if self._drawing.style != "cam":
            return
        if self._drawing.target is None:
            raise InvalidParameter("style=cam needs target=, a class's index", parameter="target")
        if self._job.reduction.channels is not None:
            raise NotCombinable("style=cam adds all channels up: leave channels out")

    def _backdrop(self, ready: Ready) -> pictures.Backdrop | None:
        if self._drawing.style not in ON_PHOTOGRAPH or not ready.pictures:
            return None
        return pictures.Backdrop(ready.pictures[0], ready.prepared.placements[0])

    def _class_weights(self, ready: Ready, layer: Layer) -> Array | None:
        if self._drawing.style != "cam":
            return None
        assert self._drawing.target is not None
        return ready.model.class_weights(layer.name, self._drawing.target)


class StatisticsAnswer:
    """Numbers about each map, as JSON."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def check(self, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Text has no statistics."""
        for layer in layers:
            reduce.check(layer, NO_REDUCTION)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Describe every map."""
        who = ready.model.identity
        with ready.watch.measure("reduce"):
            layers = [describe(feature_map) for feature_map in maps]
        with ready.watch.measure("encode"):
            told = {"model": who.name, "version": who.version, "digest": who.digest, "layers": layers}
            body = orjson.dumps({**told, "left_out": ready.left_out})
        if len(body) > self._max_bytes:
            raise too_large(len(maps), len(ready.prepared.tensor), len(body), self._max_bytes)
        return Encoded((body,), "application/json", "json")


def _left(layer: Layer, job: Job, windows: Windows) -> Layer:
    """The layer as it is drawn: fewer channels, fewer cells."""
    if layer.shape is None:
        return layer
    shape, channels = list(layer.shape), layer.channels
    chosen = job.reduction.channels
    if chosen is not None and layer.channel_axis is not None:
        channels = shape[layer.channel_axis] = chosen.top or len(chosen.indices)
    if (window := window_of(layer, windows)) is not None:
        rows, columns = layer.spatial_axes
        shape[rows], shape[columns] = window.height, window.width
    return replace(layer, shape=tuple(shape), channels=channels)
