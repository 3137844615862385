"""The v2 protocol's requests: inputs by name to what the network sees, and maps to named outputs."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from service.dtypes import DATATYPE_OF
from service.engine.loaded import LoadedModel
from service.engine.runner import Stop
from service.engine.selection import LayerTable
from service.errors import AnswerTooLarge, MalformedRequest, NotCombinable, OutputNotFound, ShapeMismatch
from service.intake.tensors import check_fits, read_binary
from service.output import reduce
from service.output.classes import RANKING_BYTES, classify
from service.output.tensors import Named, check_json, datatype_of, encode
from service.parameters import NO_REDUCTION
from service.pipeline.answers import (
    Encoded,
    check_distinct,
    check_worked_on,
    check_working,
    least_text,
    names_of_arrays,
    too_large,
    window_of,
)
from service.pipeline.prepare import (
    Check,
    Chosen,
    Ready,
    Source,
    Windows,
    check_layers,
    check_size,
    count_inputs,
    decode_all,
    place,
    ready_tensor,
    sides_of,
)
from service.pipeline.stopwatch import Stopwatch
from service.syntax import Channels
from service.values import Array, FeatureMap, Inference, Job, Layer, Limits, Output, Prepared, TensorSpec

HEAD_LENGTH = "Inference-Header-Content-Length"
# The shortest text of a class: a digit, a dot, six decimals, a colon, a place, and its length before it.
CLASS_BYTES = 14


def prepare_inference(
    job: Job, model: LoadedModel, check: Check, limits: Limits, watch: Stopwatch, stop: Stop | None = None
) -> Ready:
    """Everything that happens before the network runs, in one thread.

    Raises:
        RequestError
        Stopped: `stop` was set meanwhile.
    """
    assert job.inference is not None
    sent = _sent(job.inference, model)
    _check_names(sent, model)
    first = sent.pop(model.first_input, None)
    others = {s.name: check_fits(sent[s.name], s, any_batch=False) for s in model.inputs if s.name in sent}
    if model.image_input is None:
        tensors = {**_first(model, first), **others}
        return _prepare_any(job, model, check, limits, watch, tensors=tensors)
    if first is None:
        first = _unread_image(job, model)
    if first.dtype == object:
        return _prepare_images(job, model, check, limits, watch, stop, encoded=first, others=others)
    tensor = check_fits(first, model.image_spec(), any_batch=True)
    size = sides_of(tensor, model)
    if 0 in tensor.shape[1:]:
        raise ShapeMismatch(f"input {model.first_input!r} has a side of 0", given=list(tensor.shape))
    check_size(size, limits)
    _check_rows(others, model, len(tensor))
    layers = _wanted(job, model, model.layers(size, others, len(tensor)))
    _check_sent(model, layers, {model.first_input, *others})
    check_layers(layers, check, limits, len(tensor))
    prepared = replace(ready_tensor(tensor, model), others=others)
    return place(job, model, Chosen(layers), Source(prepared, ()), check, watch)


def compute(ready: Ready, stop: Stop | None) -> Mapping[str, Array]:
    """The maps of what is ready, after its parts; those of no image are empty, and nothing runs for them.

    Raises:
        ShapeMismatch, ModelFailed, Stopped
    """
    if not ready.images:
        return {layer.name: _empty(layer) for layer in ready.layers}
    prepared = ready.prepared
    return ready.model.run(prepared.tensor, ready.layers, stop, prepared.others, ready.parts)


class InferenceAnswer:
    """Reduced maps as the protocol's outputs, in the order that they were asked for."""

    def __init__(self, job: Job, *, limits: Limits) -> None:
        assert job.inference is not None
        self._job = job
        self._asked = job.inference
        self._limits = limits

    def check(self, layers: Sequence[Layer], images: int, windows: Windows) -> None:
        """Refuse what a reduction, a classification or JSON cannot do, and an answer over the limits."""
        outputs = [(self._asked.output_of(layer.name), layer) for layer in layers]
        for output, layer in outputs:
            self._check_one(output, layer)
        check_distinct([name for o, layer in outputs for name in names_of_arrays([layer], o.reduction)])
        regions = any(output.reduction.region is not None for output, _ in outputs)
        if regions and not images:
            raise NotCombinable("a region is cut out of the maps of images, and none was sent")
        if regions and not windows:
            return
        self._check_sizes(outputs, images, windows)

    def finish(self, ready: Ready, maps: Sequence[FeatureMap]) -> Encoded:
        """Reduce, classify, and write JSON with the bytes behind it."""
        by_name = {feature_map.layer.name: feature_map for feature_map in maps}
        with ready.watch.measure("reduce"):
            named: list[Named] = []
            for output in self._asked.outputs or map(self._asked.output_of, by_name):
                named += self._reduced(ready, by_name[output.name], output)
                total = sum(one.values.nbytes for one in named)
                if total > self._limits.answer_bytes:
                    raise too_large(len(maps), ready.images, total, self._limits.answer_bytes)
        with ready.watch.measure("encode"):
            who = ready.model.identity
            told = {"model_name": who.name, "model_version": who.version}
            if self._asked.id is not None:
                told["id"] = self._asked.id
            chunks, head_bytes = encode(named, told, max_json_bytes=self._limits.json_answer_bytes)
        if head_bytes is None:
            return Encoded(chunks, "application/json", "json")
        return Encoded(chunks, "application/octet-stream", "bin", {HEAD_LENGTH: str(head_bytes)})

    def _check_one(self, output: Output, layer: Layer) -> None:
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

    def _check_sizes(self, outputs: Sequence[tuple[Output, Layer]], images: int, windows: Windows) -> None:
        limits, binary, text = self._limits, 0, 0
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

    def _reduced(self, ready: Ready, feature_map: FeatureMap, output: Output) -> list[Named]:
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


def _sent(asked: Inference, model: LoadedModel) -> dict[str, Array]:
    """Every input that was sent; the raw request's body is the only one that the model needs."""
    if asked.tensors is not None:
        return dict(asked.tensors)
    needed = [spec for spec in model.inputs if spec.name not in model.constants]
    if len(needed) != 1:
        raise MalformedRequest(
            f"a raw request is for a model with one input; this one needs {len(needed)}: name them in JSON"
        )
    (spec,) = needed
    if spec.dtype not in DATATYPE_OF or spec.dtype == "str":
        raise MalformedRequest(f"input {spec.name!r} is no tensor of numbers: send it with its shape in JSON")
    itemsize = np.dtype(spec.dtype).itemsize
    shape = _raw_shape(spec, model, len(asked.body) // itemsize)
    return {spec.name: read_binary(spec.name, DATATYPE_OF[spec.dtype], shape, memoryview(asked.body))}


def _raw_shape(spec: TensorSpec, model: LoadedModel, elements: int) -> list[int]:
    """One image at the served size; elsewhere a single axis may be free, and takes what was sent."""
    if model.image_input is not None:
        return list(model.image_shape())
    shape = list(spec.shape or ())
    if shape[:1] == [None]:
        shape[0] = 1
    if spec.shape is None or shape.count(None) > 1:
        raise MalformedRequest(f"the shape of input {spec.name!r} is not fixed: send it in JSON")
    fixed = int(np.prod([side for side in shape if side is not None], dtype=object))
    return [elements // max(fixed, 1) if side is None else side for side in shape]


def _check_names(sent: Mapping[str, Array], model: LoadedModel) -> None:
    known = [spec.name for spec in model.inputs]
    for name in sent:
        if name not in known:
            raise MalformedRequest(
                f"unexpected inference input {name!r} for model {model.identity.name!r}; it has "
                f"{', '.join(map(repr, known[:20]))}",
                suggestions=known[:20],
            )


def _missing(model: LoadedModel, name: str) -> MalformedRequest:
    return MalformedRequest(
        f"input {name!r} of model {model.identity.name!r} is missing: the outputs asked for need it, and "
        "model.toml has no value for it"
    )


def _check_sent(model: LoadedModel, layers: Sequence[Layer], sent: Container[str]) -> None:
    """Refuse outputs that need an input which was not sent; others may be left out.

    Raises:
        MalformedRequest
    """
    for name in model.reads_of(layers):
        if name not in sent and name not in model.constants:
            raise _missing(model, name)


def _unread_image(job: Job, model: LoadedModel) -> Array:
    """In place of an image that was not sent: any will do for outputs that do not read it."""
    layers = _wanted(job, model, model.layers())
    if model.first_input in model.reads_of(layers):
        raise _missing(model, model.first_input)
    return np.zeros(model.image_shape(), model.image_spec().dtype)


def _check_rows(others: Mapping[str, Array], model: LoadedModel, images: int) -> None:
    """With several images a further input holds one row for all, or one for each."""
    free = {spec.name for spec in model.inputs if spec.shape and spec.shape[0] is None}
    for name, value in others.items():
        if 0 in value.shape:
            raise ShapeMismatch(f"input {name!r} has a side of 0", given=list(value.shape))
        if name in free and images > 1 and len(value) not in (1, images):
            raise ShapeMismatch(
                f"input {name!r} has {len(value)} rows and {images} images were sent: one row is for all of "
                "them, as many as there are images are for one each",
                given=len(value),
                allowed=[1, images],
            )


def _first(model: LoadedModel, sent: Array | None) -> Mapping[str, Array]:
    """The first input's value, where it was sent or the manifest has one."""
    spec = next(spec for spec in model.inputs if spec.name == model.first_input)
    if sent is None:
        return {n: value for n, value in model.constants.items() if n == spec.name}
    return {spec.name: check_fits(sent, spec, any_batch=False)}


def _prepare_any(
    job: Job,
    model: LoadedModel,
    check: Check,
    limits: Limits,
    watch: Stopwatch,
    *,
    tensors: dict[str, Array],
) -> Ready:
    """A model that takes no images: its tensors as they are, run once."""
    table = model.layers_for({name: tensor.shape for name, tensor in tensors.items()})
    layers = _wanted(job, model, table)
    _check_sent(model, layers, tensors)
    if any(job.reduction_of(layer.name).region is not None for layer in layers):
        raise NotCombinable("a region is cut out of the maps of images, and this model takes none")
    check_layers(layers, check, limits, 1)
    first = tensors.pop(model.first_input, np.zeros(1, np.float32))
    return Ready(job, model, layers, Prepared(first, (), tensors), (), {}, watch, table.largest_bytes)


def _prepare_images(
    job: Job,
    model: LoadedModel,
    check: Check,
    limits: Limits,
    watch: Stopwatch,
    stop: Stop | None,
    *,
    encoded: Array,
    others: Mapping[str, Array],
) -> Ready:
    """Encoded images for the image input (as OpenVINO Model Server takes them), preprocessed as elsewhere."""
    images = tuple(encoded.reshape(-1))
    if not images:
        raise MalformedRequest(f"input {model.first_input!r} holds no image")
    count = count_inputs(model, len(images))
    _check_rows(others, model, count)
    layers = _wanted(job, model, model.layers(None, others, count))
    _check_sent(model, layers, {model.first_input, *others})
    check_layers(layers, check, limits, count)
    source = decode_all(replace(job, images=images), model, limits, watch, stop)
    prepared = replace(source.prepared, others=others)
    return place(job, model, Chosen(layers), Source(prepared, source.pictures), check, watch)


def _wanted(job: Job, model: LoadedModel, table: LayerTable) -> tuple[Layer, ...]:
    """The layers that the outputs name, in graph order.

    Raises:
        OutputNotFound: with the nearest names.
    """
    assert job.inference is not None
    asked = job.inference.outputs
    names = table.outputs if asked is None else [output.name for output in asked]
    for name in names:
        if name not in table.by_name:
            near = table.nearest(name)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise OutputNotFound(
                f"unexpected inference output {name[:1024]!r} for model {model.identity.name!r}{hint}",
                suggestions=near,
            )
    if not names:
        raise MalformedRequest("no output is asked for, and the model declares none that is a tensor")
    return tuple(sorted((table.by_name[name] for name in names), key=lambda layer: layer.index))


def _empty(layer: Layer) -> Array:
    if layer.batch_axis != 0 or layer.shape is None or None in layer.shape:
        raise ShapeMismatch(
            f"layer {layer.name!r} of no image has a shape that nobody knows: send one", limit=1, actual=0
        )
    shape = (0, *(side or 0 for side in layer.shape[1:]))
    return np.empty(shape, object if layer.dtype == "str" else layer.dtype)
