"""What an inference request asks: inputs by name to what the network sees, outputs by name to layers."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from service.dtypes import DATATYPE_OF
from service.engine.loaded import LoadedModel
from service.engine.selection import LayerTable
from service.errors import MalformedRequest, NotCombinable, OutputNotFound, ShapeMismatch
from service.intake.tensors import check_fits, read_binary
from service.parameters import Reduction
from service.pipeline.prepare import (
    check_layers,
    check_size,
    count_inputs,
    decode_all,
    place,
    ready_tensor,
    sides_of,
)
from service.pipeline.request import NOTHING, BodyRequest, Chosen, Computation, Ready, Source
from service.values import Array, Layer, Prepared, TensorSpec


@dataclass(frozen=True)
class Output:
    """One output that a request asks for by its exact name.

    `classes` is how many of the highest values are wanted, as text, instead of all.
    """

    name: str
    reduction: Reduction
    binary: bool
    classes: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class InferenceRequest(BodyRequest):
    """An inference request: `body` is all of it, its JSON part `head_bytes` long.

    The other fields are read from these two. `tensors` are by the input's name, texts and encoded images as
    objects of `bytes`; None is the raw request, whose body is the one input. Without `outputs` all declared
    ones are wanted, as `default` is.
    """

    body: bytes
    head_bytes: int
    id: str | None = field(metadata=NOTHING)
    tensors: Mapping[str, Array] | None = field(metadata=NOTHING)
    outputs: tuple[Output, ...] | None = field(metadata=NOTHING)
    default: Output = field(metadata=NOTHING)

    @cached_property
    def _by_name(self) -> Mapping[str, Output]:
        return {output.name: output for output in self.outputs or ()}

    def output_of(self, layer: str) -> Output:
        """What is asked of a layer."""
        return self._by_name.get(layer) or replace(self.default, name=layer)

    def reduction_of(self, layer: str) -> Reduction:
        """What is done to a layer's map: each output has its own."""
        return self.output_of(layer).reduction

    def prepare(self, computation: Computation) -> Ready:
        """Take the inputs that were sent, and decode images among them."""
        model = computation.model
        sent = _sent(self, model)
        _check_names(sent, model)
        first = sent.pop(model.first_input, None)
        others = {
            s.name: check_fits(sent[s.name], s, any_batch=False) for s in model.inputs if s.name in sent
        }
        if model.image_input is None:
            return _prepare_any(self, computation, {**_first(model, first), **others})
        if first is None:
            first = _unread_image(self, model)
        if first.dtype == object:
            return _prepare_images(self, computation, first, others)
        return _prepare_tensor(self, computation, first, others)


def _prepare_tensor(
    request: InferenceRequest, computation: Computation, first: Array, others: Mapping[str, Array]
) -> Ready:
    """A tensor of the image input, as it is."""
    model = computation.model
    tensor = check_fits(first, model.image_spec(), any_batch=True)
    size = sides_of(tensor, model)
    if 0 in tensor.shape[1:]:
        raise ShapeMismatch(f"input {model.first_input!r} has a side of 0", given=list(tensor.shape))
    check_size(size, computation.limits)
    _check_rows(others, model, len(tensor))
    layers = _wanted(request, model, model.layers(size, others, len(tensor)))
    _check_sent(model, layers, {model.first_input, *others})
    check_layers(computation, layers, len(tensor))
    prepared = replace(ready_tensor(tensor, model), others=others)
    return place(computation, Chosen(layers), Source(prepared))


def _sent(asked: InferenceRequest, model: LoadedModel) -> dict[str, Array]:
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


def _unread_image(request: InferenceRequest, model: LoadedModel) -> Array:
    """In place of an image that was not sent: any will do for outputs that do not read it."""
    layers = _wanted(request, model, model.layers())
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


def _prepare_any(request: InferenceRequest, computation: Computation, tensors: dict[str, Array]) -> Ready:
    """A model that takes no images: its tensors as they are, run once."""
    model = computation.model
    table = model.layers_for({name: tensor.shape for name, tensor in tensors.items()})
    layers = _wanted(request, model, table)
    _check_sent(model, layers, tensors)
    if any(request.reduction_of(layer.name).region is not None for layer in layers):
        raise NotCombinable("a region is cut out of the maps of images, and this model takes none")
    check_layers(computation, layers, 1)
    first = tensors.pop(model.first_input, np.zeros(1, np.float32))
    source = Source(Prepared(first, (), tensors))
    return Ready(computation, layers, source, largest_bytes=table.largest_bytes)


def _prepare_images(
    request: InferenceRequest, computation: Computation, encoded: Array, others: Mapping[str, Array]
) -> Ready:
    """Encoded images for the image input (as OpenVINO Model Server takes them), preprocessed as elsewhere."""
    model, images = computation.model, tuple(encoded.reshape(-1))
    if not images:
        raise MalformedRequest(f"input {model.first_input!r} holds no image")
    count = count_inputs(model, len(images))
    _check_rows(others, model, count)
    layers = _wanted(request, model, model.layers(None, others, count))
    _check_sent(model, layers, {model.first_input, *others})
    check_layers(computation, layers, count)
    source = decode_all(computation, images)
    prepared = replace(source.prepared, others=others)
    return place(computation, Chosen(layers), replace(source, prepared=prepared))


def _wanted(request: InferenceRequest, model: LoadedModel, table: LayerTable) -> tuple[Layer, ...]:
    """The layers that the outputs name, in graph order.

    Raises:
        OutputNotFound: with the nearest names.
    """
    asked = request.outputs
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
