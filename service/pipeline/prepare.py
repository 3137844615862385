"""Prepare: refuse cheaply first, then turn bytes into a tensor and find where each map's window lies."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.engine.loaded import LoadedModel
from service.engine.runner import Stopped
from service.engine.selection import LayerTable, held_bytes
from service.errors import (
    AnswerTooLarge,
    InvalidParameter,
    ModelNeedsConstants,
    NotCombinable,
    RequestError,
    ShapeMismatch,
    TooManyImages,
)
from service.intake.decode import decode
from service.intake.preprocess import preprocess, read_tensor, stack
from service.output import reduce
from service.output.window import find_window
from service.pipeline.request import (
    BodyRequest,
    Chosen,
    Computation,
    Ready,
    Request,
    Source,
    Windows,
)
from service.values import Array, Layer, Limits, Placement, Prepared


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagesRequest(BodyRequest):
    """Encoded images, along the batch axis in their order."""

    images: tuple[bytes, ...]

    def prepare(self, computation: Computation) -> Ready:
        """Decode and preprocess the images."""
        images = count_inputs(computation.model, len(self.images))
        chosen = select(computation, self.size, images)
        return place(computation, chosen, decode_all(computation, self.images))


@dataclass(frozen=True, eq=False, kw_only=True)
class TensorRequest(BodyRequest):
    """A ready tensor as a `.npy` file, which skips preprocessing."""

    tensor: bytes

    def prepare(self, computation: Computation) -> Ready:
        """Read the tensor."""
        if self.size is not None:
            raise NotCombinable("size is for images; a ready tensor has its own")
        model = computation.model
        tensor = read_tensor(self.tensor, model.image_spec()).tensor
        chosen = select(computation, sides_of(tensor, model), len(tensor))
        return place(computation, chosen, Source(ready_tensor(tensor, model)))


@dataclass(frozen=True, eq=False, kw_only=True)
class KeptImageRequest(Request):
    """One image of `owner` that is kept under `image_id`, the SHA-256 of its bytes."""

    image_id: str
    owner: str


def select(computation: Computation, size: tuple[int, int] | None, images: int) -> Chosen:
    """The layers asked for, where everything that is known so far allows them.

    Raises:
        RequestError
    """
    check_size(size, computation.limits)
    model = computation.model
    chosen = choose(model, model.layers(size), computation.request.layers)
    check_layers(computation, chosen.layers, images)
    return chosen


def choose(model: LoadedModel, table: LayerTable, words: Sequence[str]) -> Chosen:
    """The layers that words mean, without those that cannot be answered and were not named themselves.

    Raises:
        RequestError: no such layer, or none of them can be answered.
    """
    layers, named = table.select(words), table.named(words)
    problems = {x.name: problem for x in layers if (problem := _problem(model, x)) is not None}
    left_out = {name: problem.detail for name, problem in problems.items() if name not in named}
    left = tuple(x.widened() for x in layers if x.name not in left_out)
    for layer in left:
        if layer.name in problems:
            raise problems[layer.name]
    if not left:
        raise next(iter(problems.values()))
    return Chosen(left, left_out)


def _check_inputs(model: LoadedModel, layer: Layer) -> None:
    """Refuse a layer that reads an input which has no value; others do not need it."""
    known = {model.first_input, *model.constants}
    missing = [name for name in model.reads_of([layer]) if name not in known]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ModelNeedsConstants(
            f"layer {layer.name!r} reads the input {names} too, which has no value: give it one under "
            "[constants] in the model's model.toml, send it with /v2, or ask for layers that do not read it",
            layer=layer.name,
        )


def _problem(model: LoadedModel, layer: Layer) -> RequestError | None:
    """Why a layer's values cannot be sent as an array."""
    try:
        reduce.check_numbers(layer.widened())
        _check_inputs(model, layer)
    except RequestError as error:
        return error
    return None


def count_inputs(model: LoadedModel, images: int) -> int:
    """How many times a network runs for so many images: several may be stacked to one input.

    Raises:
        ShapeMismatch: they do not make up whole inputs.
    """
    stacked = model.recipe.images if model.recipe else 1
    if images % stacked:
        raise ShapeMismatch(
            f"this model takes {stacked} images together, one after the other along its channels, and "
            f"{images} were sent",
            limit=stacked,
            actual=images,
        )
    return images // stacked


def check_layers(computation: Computation, layers: Sequence[Layer], images: int) -> None:
    """Refuse what is too much of some layers, and what the answer cannot be made of.

    Raises:
        RequestError
    """
    _check_images(images, computation.limits)
    _check_maps(layers, images, computation.limits)
    computation.check(layers, images, {})


def place(computation: Computation, chosen: Chosen, source: Source) -> Ready:
    """Find where a region lies in each map, and refuse what is too large because of it.

    Raises:
        RequestError
    """
    model, prepared, layers = computation.model, source.prepared, chosen.layers
    windows, images = _find_windows(computation, layers, prepared), len(prepared.tensor)
    if windows:
        computation.check(layers, images, windows)
    largest = model.layers(sides_of(prepared.tensor, model), prepared.others, images).largest_bytes
    return Ready(computation, layers, source, windows, largest, chosen.left_out)


def decode_all(computation: Computation, images: Sequence[bytes]) -> Source:
    """Decode and preprocess images; none is begun once `computation.cancel` is set.

    Raises:
        RequestError: with the `index` of the image.
        Stopped: `computation.cancel` was set meanwhile.
    """
    model, timer = computation.model, computation.timer
    spec, recipe = model.image_spec(), model.recipe_at(computation.request.size)
    parts = []
    for index, image in enumerate(images):
        if computation.cancel.is_set:
            raise Stopped
        try:
            with timer.measure("decode"):
                picture = decode(
                    image, max_pixels=computation.limits.pixels, keep_alpha=recipe.color == "rgba"
                )
            with timer.measure("preprocess"):
                parts.append(preprocess(picture, recipe, spec))
        except RequestError as error:
            error.extensions["index"] = index
            raise
    if recipe.images > 1:
        groups = range(0, len(parts), recipe.images)
        parts = [stack(parts[i : i + recipe.images], spec) for i in groups]
    if len(parts) == 1:
        return Source(parts[0], (picture,) if recipe.images == 1 else ())
    placements = tuple(placement for part in parts for placement in part.placements)
    return Source(Prepared(np.concatenate([part.tensor for part in parts]), placements))


def check_size(size: tuple[int, int] | None, limits: Limits) -> None:
    """Refuse an input larger than the operator allows.

    Raises:
        InvalidParameter
    """
    if size is not None and size[0] * size[1] > limits.size_pixels:
        raise InvalidParameter(
            f"{size[0]}x{size[1]} is {size[0] * size[1]} pixels; at most {limits.size_pixels} are fed "
            "to a network here",
            parameter="size",
            limit=limits.size_pixels,
            actual=size[0] * size[1],
        )


def ready_tensor(tensor: Array, model: LoadedModel) -> Prepared:
    """A tensor (N, ...) of the image input: a region of it is a region of itself."""
    whole = Placement(sides_of(tensor, model), (1.0, 1.0), (0.0, 0.0))
    return Prepared(tensor, (whole,) * len(tensor))


def sides_of(tensor: Array, model: LoadedModel) -> tuple[int, int]:
    """(H, W) of a tensor of the image input."""
    shape = tensor.shape
    return (shape[2], shape[3]) if model.image_spec().layout == "NCHW" else (shape[1], shape[2])


def _check_images(images: int, limits: Limits) -> None:
    if images > limits.images:
        raise TooManyImages(
            f"{images} images were sent; at most {limits.images} are taken in one request",
            limit=limits.images,
            actual=images,
        )


def _check_maps(layers: Sequence[Layer], images: int, limits: Limits) -> None:
    """However little is sent in the end, every map has to be held first."""
    total = images * sum(map(held_bytes, layers))
    if total > limits.map_bytes:
        raise AnswerTooLarge(
            f"{len(layers)} layers for {images} image(s) are {total} bytes before anything is left out, and "
            f"at most {limits.map_bytes} are held: ask for fewer layers, a smaller size or fewer images",
            limit=limits.map_bytes,
            actual=total,
        )


def _find_windows(computation: Computation, layers: Sequence[Layer], prepared: Prepared) -> Windows:
    request = computation.request
    regions = {x.name: region for x in layers if (region := request.reduction_of(x.name).region) is not None}
    if not regions:
        return {}
    seen = sides_of(prepared.tensor, computation.model)
    windows = {
        layer.name: tuple(find_window(regions[layer.name], layer, p, seen) for p in prepared.placements)
        for layer in layers
        if layer.name in regions
    }
    for name, found in windows.items():
        if len({(window.height, window.width) for window in found}) > 1:
            raise NotCombinable(
                f"the region covers different numbers of cells of layer {name!r} in images of different "
                "shapes: send them one by one, or ask for a grid",
                layer=name,
            )
    return windows
