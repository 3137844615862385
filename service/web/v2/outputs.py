"""The outputs of an inference answer: reduced maps, classes, as JSON and as bytes behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.loaded import LoadedModel
from service.errors import AnswerTooLarge, NotCombinable
from service.output import reduce
from service.output.classes import RANKING_BYTES, classify
from service.output.tensors import Named, check_json, datatype_of, encode
from service.parameters import NO_REDUCTION
from service.pipeline.answers import (
    check_distinct,
    check_worked_on,
    check_working,
    least_text,
    names_of_arrays,
    too_large,
    window_of,
)
from service.pipeline.request import Computation, Encoded, Ready, Windows
from service.syntax import Channels
from service.values import FeatureMap, Layer, Limits
from service.web.v2.request import InferenceRequest, Output

HEAD_LENGTH = "Inference-Header-Content-Length"
# The shortest text of a class: a digit, a dot, six decimals, a colon, a place, and its length before it.
CLASS_BYTES = 14


@dataclass(frozen=True)
class OutputsAnswer:
    """Reduced maps as the protocol's outputs, in the order that they were asked for."""

    def check(self, computation: Computation, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what a reduction, a classification or JSON cannot do, and an answer over the limits."""
        asked = _asked(computation)
        outputs = [(asked.output_of(layer.name), layer) for layer in layers]
        for output, layer in outputs:
            _check_one(output, layer)
        check_distinct([name for o, layer in outputs for name in names_of_arrays([layer], o.reduction)])
        regions = any(output.reduction.region is not None for output, _ in outputs)
        if regions and not images:
            raise NotCombinable("a region is cut out of the maps of images, and none was sent")
        if regions and not windows:
            return
        _check_sizes(outputs, images, windows, computation.limits)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Reduce, classify, and write JSON with the bytes behind it."""
        asked, limits = _asked(ready.computation), ready.computation.limits
        by_name = {feature_map.layer.name: feature_map for feature_map in maps}
        with ready.timer.measure("reduce"):
            named: list[Named] = []
            for output in asked.outputs or map(asked.output_of, by_name):
                named += _reduced(ready, by_name[output.name], output)
                total = sum(one.values.nbytes for one in named)
                if total > limits.answer_bytes:
                    raise too_large(len(maps), ready.images, total, limits.answer_bytes)
        with ready.timer.measure("encode"):
            who = ready.model.identity
            head = {"model_name": who.name, "model_version": who.version}
            if asked.id is not None:
                head["id"] = asked.id
            chunks, head_bytes = encode(named, head, max_json_bytes=limits.json_answer_bytes)
        if head_bytes is None:
            return Encoded(chunks, "application/json", "json")
        return Encoded(chunks, "application/octet-stream", "bin", {HEAD_LENGTH: str(head_bytes)})


def _asked(computation: Computation) -> InferenceRequest:
    request = computation.request
    assert isinstance(request, InferenceRequest)
    return request


def _check_one(output: Output, layer: Layer) -> None:
    numeric = reduce.is_numeric(layer.dtype)
    if numeric or output.reduction != NO_REDUCTION or output.classes:
        reduce.check(layer, output.reduction)
    dtype = reduce.answer_dtype(layer, output.reduction).name if numeric else layer.dtype
    if dtype:
        datatype_of(layer.name, dtype)
    if output.classes and output.reduction.dtype == "uint8":
        raise NotCombinable("classification ranks values as they are: leave dtype=uint8 out")
    if not output.binary and not output.classes:
        check_json(layer.name, dtype)


def _check_sizes(
    outputs: Sequence[tuple[Output, Layer]], images: int, windows: Windows, limits: Limits
) -> None:
    binary, text = 0, 0
    for output, layer in outputs:
        if not reduce.is_numeric(layer.dtype):
            continue
        window = window_of(layer, windows)
        check_working([layer], output.reduction, images, windows, limits.map_bytes)
        if output.classes:
            elements = reduce.answer_elements(layer, output.reduction, images, window)
            check_worked_on(elements * RANKING_BYTES, limits.map_bytes)
            text += CLASS_BYTES * min(output.classes * max(images, 1), elements)
        elif output.binary:
            binary += reduce.answer_bytes(layer, output.reduction, images, window)
        else:
            text += least_text(layer, output.reduction, images, window)
    if binary > limits.answer_bytes:
        raise too_large(len(outputs), images, binary, limits.answer_bytes)
    if text > limits.json_answer_bytes:
        refusal = too_large(len(outputs), images, text, limits.json_answer_bytes)
        raise AnswerTooLarge(f"as JSON {refusal.detail}, or with binary_data", **refusal.extensions)


def _reduced(ready: Ready, feature_map: FeatureMap, output: Output) -> list[Named]:
    layer, values = feature_map.layer, feature_map.values
    arrays = {layer.name: values}
    if output.reduction != NO_REDUCTION:
        arrays = reduce.apply(feature_map, output.reduction, ready.windows.get(layer.name, ()))
    if output.classes:
        labels = _labels(ready.model, layer, output.reduction.channels)
        batched = layer.batch_axis == 0 and arrays[layer.name].ndim > 1
        arrays[layer.name] = classify(arrays[layer.name], output.classes, labels, batched=batched)
    return [Named(name, array, output.binary) for name, array in arrays.items()]


def _labels(model: LoadedModel, layer: Layer, channels: Channels | None) -> Sequence[str]:
    """Of the channels that are left, where it is known which those are: `top` differs from image to image."""
    labels = model.labels if layer.name in model.outputs else ()
    if channels is None:
        return labels
    known = len(labels) == layer.channels
    return [labels[i] for i in channels.indices] if known and not channels.top else ()
