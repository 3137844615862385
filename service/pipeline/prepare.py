"""PREPARE: refuse cheaply first, then bytes -> tensor, and where each map's window lies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from service.engine.loaded import LoadedModel
from service.engine.runner import Stop, Stopped
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
from service.pipeline.stopwatch import Stopwatch
from service.values import Array, Job, Layer, Limits, Parts, Picture, Placement, Prepared, Window

Windows = Mapping[str, tuple[Window, ...]]
# Called twice: before anything is decoded, and, where a region decides the size, once it is known.
Check = Callable[[Sequence[Layer], int, Windows], None]


@dataclass(frozen=True, eq=False)
class Ready:
    """A job whose layers exist and whose answer fits, with what the network will see.

    `windows` holds the cells of each layer for each image, where a region was asked for. `largest_bytes` are
    those of the largest map that the network can make of one image; to find them out takes long. `left_out`
    are layers that `all` and the like would mean and that cannot be answered, with the reasons.
    """

    job: Job
    model: LoadedModel
    layers: tuple[Layer, ...]
    prepared: Prepared
    pictures: tuple[Picture, ...]
    windows: Windows
    watch: Stopwatch
    largest_bytes: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many lie in the tensor; of a model that takes none, whatever it was sent counts as one."""
        return len(self.prepared.tensor) if self.model.image_input else 1

    @cached_property
    def parts(self) -> Parts:
        """What of the layers' reductions is done where their maps lie."""
        if not self.images:
            return {}  # Nothing runs.
        return self.model.parts_of(self.layers, self.job.reduction_of)


@dataclass(frozen=True)
class Chosen:
    """The layers that a request gets, and those that it does not get, with the reasons."""

    layers: tuple[Layer, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Source:
    """What a job's maps are computed from; pictures are kept of a single image only."""

    prepared: Prepared
    pictures: tuple[Picture, ...]

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensor and of the pictures, of which Pillow holds four a pixel."""
        pixels = sum(picture.size[0] * picture.size[1] for picture in self.pictures)
        return int(self.prepared.tensor.nbytes) + 4 * pixels


def prepare(
    job: Job, model: LoadedModel, check: Check, limits: Limits, watch: Stopwatch, stop: Stop | None = None
) -> Ready:
    """Everything that happens before the network runs, in one thread.

    Raises:
        RequestError: any of them; for an image with its `index`.
        Stopped: `stop` was set meanwhile.
    """
    tensor = _read_tensor(job, model) if job.tensor is not None else None
    size = sides_of(tensor.tensor, model) if tensor else job.size
    images = len(tensor.tensor) if tensor else count_inputs(model, len(job.images))
    chosen = select(job, model, check, limits, size=size, images=images)
    source = Source(tensor, ()) if tensor else decode_all(job, model, limits, watch, stop)
    return place(job, model, chosen, source, check, watch)


def select(
    job: Job,
    model: LoadedModel,
    check: Check,
    limits: Limits,
    *,
    size: tuple[int, int] | None,
    images: int,
) -> Chosen:
    """The layers asked for, where everything that is known so far allows them.

    Raises:
        RequestError
    """
    check_size(size, limits)
    chosen = choose(model, model.layers(size), job.layers)
    check_layers(chosen.layers, check, limits, images)
    return chosen


def select_for_one(
    job: Job, model: LoadedModel, check: Check, limits: Limits, *, size: tuple[int, int] | None
) -> Chosen:
    """The same for a single image.

    Raises:
        RequestError
    """
    return select(job, model, check, limits, size=size, images=count_inputs(model, 1))


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


def check_layers(layers: Sequence[Layer], check: Check, limits: Limits, images: int) -> None:
    """Refuse what is too much of some layers, and what the answer cannot be made of.

    Raises:
        RequestError
    """
    _check_images(images, limits)
    _check_maps(layers, images, limits)
    check(layers, images, {})


def place(
    job: Job, model: LoadedModel, chosen: Chosen, source: Source, check: Check, watch: Stopwatch
) -> Ready:
    """Find where a region lies in each map, and refuse what is too large because of it.

    Raises:
        RequestError
    """
    prepared, layers = source.prepared, chosen.layers
    windows, images = _find_windows(job, layers, prepared, model), len(prepared.tensor)
    if windows:
        check(layers, images, windows)
    largest = model.layers(sides_of(prepared.tensor, model), prepared.others, images).largest_bytes
    return Ready(job, model, layers, prepared, source.pictures, windows, watch, largest, chosen.left_out)


def decode_all(
    job: Job, model: LoadedModel, limits: Limits, watch: Stopwatch, stop: Stop | None = None
) -> Source:
    """Decode and preprocess every image of a job; one that nobody waits for any more is not begun.

    Raises:
        RequestError: with the `index` of the image.
        Stopped: `stop` was set meanwhile.
    """
    spec, recipe = model.image_spec(), model.recipe_at(job.size)
    parts = []
    for index, image in enumerate(job.images):
        if stop and stop.is_set:
            raise Stopped
        try:
            with watch.measure("decode"):
                picture = decode(image, max_pixels=limits.pixels, keep_alpha=recipe.color == "rgba")
            with watch.measure("preprocess"):
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
    return Source(Prepared(np.concatenate([part.tensor for part in parts]), placements), ())


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


def _read_tensor(job: Job, model: LoadedModel) -> Prepared:
    assert job.tensor is not None
    if job.size is not None:
        raise NotCombinable("size is for images; a ready tensor has its own")
    return ready_tensor(read_tensor(job.tensor, model.image_spec()).tensor, model)


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


def _find_windows(job: Job, layers: Sequence[Layer], prepared: Prepared, model: LoadedModel) -> Windows:
    regions = {x.name: region for x in layers if (region := job.reduction_of(x.name).region) is not None}
    if not regions:
        return {}
    seen = sides_of(prepared.tensor, model)
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
