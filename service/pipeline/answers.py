"""Finish: reduce maps and encode them as arrays or JSON, with a receipt of how they were made."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from service import __version__
from service.dtypes import WIDENED
from service.errors import AnswerTooLarge, NotCombinable
from service.output import arrays, reduce
from service.output.quantise import error_bound
from service.output.table import FORMATS
from service.parameters import NO_REDUCTION, Compress, Reduction
from service.pipeline.prepare import TensorRequest
from service.pipeline.request import Computation, Encoded, Ready, Windows
from service.values import Array, FeatureMap, Layer, Limits, Parts, Window

OTHER_REDUCTION = "a smaller grid, for channels by their numbers, for another pool or dtype"


@dataclass(frozen=True)
class ArraysAnswer:
    """Reduced maps in one of the array formats, by its name."""

    format: str = "npz"
    compress: Compress = "none"

    def check(self, computation: Computation, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what the reduction or the format cannot do, and an answer over the limit."""
        reduction = computation.request.reduction
        FORMATS[self.format].check(names_of_arrays(layers, reduction), self.compress)
        check_reduced(reduction, layers, images, windows, computation.limits, reduce.answer_bytes)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """The arrays, with the metadata of what was done where the format carries it."""
        kind = FORMATS[self.format]
        with ready.timer.measure("reduce"):
            reduced = apply_all(ready, maps)
        with ready.timer.measure("encode"):
            receipt = metadata(ready) if kind.carries_metadata else {}
            chunks = kind.encode(reduced, receipt, self.compress)
        return Encoded(chunks, kind.media_type, kind.extension)


@dataclass(frozen=True)
class JsonAnswer:
    """Reduced maps as JSON numbers."""

    def check(self, computation: Computation, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse by the least that the text can be; its length is known only when it is written."""
        limits = replace(computation.limits, answer_bytes=computation.limits.json_answer_bytes)
        check_reduced(computation.request.reduction, layers, images, windows, limits, least_text)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Numbers as text."""
        with ready.timer.measure("reduce"):
            reduced = apply_all(ready, maps)
        with ready.timer.measure("encode"):
            who = ready.model.identity
            head = {"model": who.name, "version": who.version, "left_out": ready.left_out}
            most = ready.computation.limits.json_answer_bytes
            chunks = arrays.encode_json(reduced, head, max_bytes=most)
        return Encoded(chunks, "application/json", "json")


def least_text(layer: Layer, reduction: Reduction, images: int, window: Window | None) -> int:
    """The fewest characters that a layer's numbers take as JSON."""
    elements = reduce.answer_elements(layer, reduction, images, window)
    return elements * arrays.least_json_bytes(reduce.answer_dtype(layer, reduction))


def check_reduced(
    reduction: Reduction,
    layers: Sequence[Layer],
    images: int,
    windows: Windows,
    limits: Limits,
    size_of: Callable[[Layer, Reduction, int, Window | None], int],
) -> None:
    """Refuse what the reduction cannot do; and, once the windows are known, what is too large.

    Raises:
        InvalidParameter, NotCombinable, AnswerTooLarge
    """
    for layer in layers:
        reduce.check(layer, reduction)
    check_distinct(names_of_arrays(layers, reduction))
    if reduction.region is not None and not windows:
        return
    total = sum(size_of(layer, reduction, images, window_of(layer, windows)) for layer in layers)
    if total > limits.answer_bytes:
        raise too_large(len(layers), images, total, limits.answer_bytes)
    check_working(layers, reduction, images, windows, limits.map_bytes)


def names_of_arrays(layers: Sequence[Layer], reduction: Reduction) -> list[str]:
    """Every array of the answer: the layers, and what stands beside them."""
    beside = []
    if reduction.channels and reduction.channels.top:
        beside.append("#channels")
    if reduction.dtype == "uint8":
        beside += ["#scale", "#zero_point"]
    return [layer.name + suffix for layer in layers for suffix in ("", *beside)]


def check_distinct(names: Sequence[str]) -> None:
    """Refuse a layer that is called as what stands beside another.

    Raises:
        NotCombinable
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise NotCombinable(
                f"two arrays would be called {name[:1024]!r}: ask for these layers one by one"
            )


def check_working(
    layers: Sequence[Layer], reduction: Reduction, images: int, windows: Windows, limit: int
) -> None:
    """Refuse a reduction that would hold more than the operator allows while it works.

    Raises:
        AnswerTooLarge
    """
    each = [reduce.working_bytes(layer, reduction, images, window_of(layer, windows)) for layer in layers]
    check_worked_on(max(each), limit)


def check_worked_on(needed_bytes: int, limit: int, instead: str = OTHER_REDUCTION) -> None:
    """Refuse what would hold more while it is done than the operator allows.

    Raises:
        AnswerTooLarge
    """
    if needed_bytes > limit:
        raise AnswerTooLarge(
            f"what is done to a map would hold {needed_bytes} bytes while it is done; at most {limit} are "
            f"held: ask for {instead}, or for a smaller size",
            limit=limit,
            actual=needed_bytes,
        )


def window_of(layer: Layer, windows: Windows) -> Window | None:
    """The window of a layer; those of several images have the same size."""
    return next(iter(windows.get(layer.name, ())), None)


def too_large(layers: int, images: int, actual: int, limit: int) -> AnswerTooLarge:
    """The refusal, with the parameters that would bring the size down."""
    return AnswerTooLarge(
        f"{layers} layers for {images} image(s) are {actual} bytes and at most {limit} are sent: ask for "
        "fewer layers, pool=avg, grid=7x7, channels=top:8, dtype=float16 or uint8, a region, a smaller "
        "size or fewer images (list_layers shows the bytes of each)",
        limit=limit,
        actual=actual,
    )


def apply_all(ready: Ready, maps: Sequence[FeatureMap]) -> dict[str, Array]:
    """Every map reduced, and what stands beside it, in order.

    Raises:
        AnswerTooLarge: a layer whose shape was not known before it ran is too large.
        OutOfRange: the dtype cannot carry a value.
    """
    reduced: dict[str, Array] = {}
    max_bytes = ready.computation.limits.answer_bytes
    for feature_map in maps:
        windows = ready.windows.get(feature_map.layer.name, ())
        reduced |= reduce.apply(feature_map, ready.request.reduction, windows)
        total = sum(array.nbytes for array in reduced.values())
        if total > max_bytes:
            raise too_large(len(maps), len(ready.prepared.tensor), total, max_bytes)
    return reduced


def metadata(ready: Ready) -> Mapping[str, Any]:
    """What was done, as it travels with the bytes."""
    request, model, tensor = ready.request, ready.model, ready.prepared.tensor
    reduction, from_images = request.reduction, not isinstance(request, TensorRequest)
    return {
        "service": f"featuremaps {__version__}",
        "runtime": ready.computation.runtime,
        "provider": model.provider,
        "graph_optimization": model.graph_optimization,
        **asdict(model.identity),
        "images": len(tensor),
        "input_shape": tensor.shape,
        # The tensor that the network saw, C order, in the graph's own dtype.
        "input_sha256": hashlib.sha256(tensor.data).hexdigest(),
        # Nothing was done to a ready tensor.
        "preprocessing": asdict(model.recipe_at(request.size)) if from_images else None,
        # Where the size comes from, where the request does not say it.
        "size_source": model.size_source if from_images and request.size is None else None,
        "layers": [layer.name for layer in ready.layers],
        "left_out": ready.left_out,
        "channels": asdict(reduction.channels) if reduction.channels else None,
        "region": asdict(reduction.region) if reduction.region else None,
        "windows": {name: [asdict(window) for window in found] for name, found in ready.windows.items()},
        "pool": reduction.pool,
        "grid": reduction.grid,
        "dtype": reduction.dtype,
        "error_bound": {x.name: error_bound(x.dtype, reduction.dtype) for x in ready.layers},
    }


def map_of(layer: Layer, values: Array, done: Parts) -> FeatureMap:
    """A layer's map, in the dtype that it is answered in."""
    is_narrow = layer.dtype in set(WIDENED.values()) and values.dtype.name in WIDENED
    return FeatureMap(
        layer, values.astype(layer.dtype) if is_narrow else values, done.get(layer.name, NO_REDUCTION)
    )


def file_name(model: str, what: str, extension: str) -> str:
    """A safe name that tells the model and what of it."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", what).strip("-.")[:80]
    return f"{model}-{safe or 'layer'}.{extension}"
