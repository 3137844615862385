"""Which of a graph's inputs takes the image, at which sizes it may run, and how images become it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from service.engine import manifest as manifests
from service.engine.layers.axes import input_layout
from service.engine.manifest import Manifest
from service.engine.nodes import Network
from service.values import Layout, Preprocessing, SizeSource, TensorSpec

# Sizes to try for a graph that leaves height and width free, where model.toml names none. A side of 1 would
# fit no network that merges maps of several resolutions.
GUESSED_SIDES = (224, 256, 192, 288, 320, 160, 384, 128)
CHANNELS_OF_COLOURS = (1, 3)
COLOURS = 3
NAMES_SHOWN = 8
Shapes = Mapping[str, tuple[int, ...]]
# From the shapes of all inputs to the graph at these, without running anything.
Describe = Callable[[Shapes], Network]


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images.

    Attributes:
        spec: with its layout; the batch axis is free where groups of `group` images run.
        size: (H, W) served where a request names none, and where it comes from.
        group: how many images the file fixes its batch to, 1 where it does not.
        preprocessing: None where images cannot be sent, for the `reason`.
    """

    spec: TensorSpec
    size: tuple[int, int]
    size_source: SizeSource
    group: int
    preprocessing: Preprocessing | None
    reason: str = ""

    def shape_at(self, size: tuple[int, int]) -> tuple[int, ...]:
        """The tensor's shape for one group of images of a size (H, W)."""
        assert self.spec.shape is not None
        channels = self.spec.shape[1 if self.spec.layout == "NCHW" else 3] or COLOURS
        if self.spec.layout == "NCHW":
            return (self.group, channels, *size)
        return (self.group, *size, channels)

    @property
    def sides(self) -> tuple[int | None, int | None]:
        """(H, W) as the graph fixes them, None where a side is free."""
        return _sides(self.spec)


def default_shapes(inputs: Iterable[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Every input's shape where its rank is known; an axis that nothing fixes is 1."""
    return {s.name: tuple(d or 1 for d in s.shape) for s in inputs if s.shape is not None}


def find_image_input(
    inputs: Sequence[TensorSpec], manifest: Manifest, shapes: Shapes, describe: Describe
) -> tuple[ImageInput | None, str]:
    """The one input without a constant that has an image's axes, or None and the reason.

    Raises:
        ModelFailed: the manifest contradicts the graph.
    """
    free = [spec for spec in inputs if spec.name not in manifest.constants]
    found = [spec for spec in free if spec.shape is not None and len(spec.shape) == 4]
    placed = [(spec, layout) for spec in found if (layout := _layout(spec, shapes, describe)) is not None]
    if len(placed) == 1:
        spec, layout = placed[0]
        return _image_input(replace(spec, layout=layout), manifest), ""
    return None, _reason(free, [spec for spec, _ in placed] or found)


def candidate_sizes(image: ImageInput | None) -> Sequence[tuple[int, int] | None]:
    """The sizes at which a network may be tried: the served one, or the guesses in turn."""
    if image is None or image.size_source != "guessed":
        return [None]
    height, width = image.sides
    return list(dict.fromkeys((height or side, width or side) for side in GUESSED_SIDES))


def check_size_fits(image: ImageInput, size: tuple[int, int]) -> str:
    """What is wrong with a size (H, W) for this input, "" where it fits."""
    height, width = image.sides
    if (height or size[0], width or size[1]) == size:
        return ""
    fixed = f"{height or 'any'}x{width or 'any'}"
    return f"size={size[0]}x{size[1]} does not fit: the input of this model is fixed to {fixed}"


def at_size(image: ImageInput, size: tuple[int, int]) -> ImageInput:
    """The same input served at another size."""
    recipe = image.preprocessing
    return replace(image, size=size, preprocessing=recipe and manifests.at_size(recipe, size))


def _layout(spec: TensorSpec, shapes: Shapes, describe: Describe) -> Layout | None:
    """By how the axes reach the first convolution or pooling, at a size that most networks run at."""
    layout = input_layout(describe({**shapes, spec.name: _trial_shape(spec)}), spec.name)
    return layout if layout in ("NCHW", "NHWC") else None


def _trial_shape(spec: TensorSpec) -> tuple[int, ...]:
    assert spec.shape is not None
    batch, *rest = spec.shape
    last = rest[0] not in CHANNELS_OF_COLOURS and rest[2] in CHANNELS_OF_COLOURS
    sides = [GUESSED_SIDES[0]] * 3
    sides[2 if last else 0] = COLOURS
    return (batch or 1, *(size or side for size, side in zip(rest, sides, strict=True)))


def _image_input(spec: TensorSpec, manifest: Manifest) -> ImageInput:
    assert spec.shape is not None
    group = spec.shape[0] or 1
    if group > 1:
        spec = replace(spec, shape=(None, *spec.shape[1:]))
    wanted = manifest.input.size if manifest.input else None
    sides = _sides(spec)
    size = manifests.served_size(wanted, sides, GUESSED_SIDES[0])
    source: SizeSource = "graph" if None not in sides else "model.toml" if wanted else "guessed"
    preprocessing, reason = _preprocessing(manifest, spec, size)
    return ImageInput(spec, size, source, group, preprocessing, reason)


def _preprocessing(
    manifest: Manifest, spec: TensorSpec, size: tuple[int, int]
) -> tuple[Preprocessing | None, str]:
    """The manifest's; a default only where the channels are those of one picture, in gray or in colour."""
    assert spec.shape is not None
    channels = spec.shape[1 if spec.layout == "NCHW" else 3]
    if channels in (None, *CHANNELS_OF_COLOURS) or (manifest.input and manifest.input.says_channels):
        return manifests.preprocessing(manifest, spec, size), ""
    return None, (
        f"the input {spec.name!r} has {channels} channels, and nothing says how images fill them: set color "
        'under [input] in a model.toml ("rgba" for four), or images = N for N images one after the other; or '
        "send a ready tensor (application/x-npy, /v2)"
    )


def _sides(spec: TensorSpec) -> tuple[int | None, int | None]:
    assert spec.shape is not None
    first = 2 if spec.layout == "NCHW" else 1
    return spec.shape[first], spec.shape[first + 1]


def _reason(free: Sequence[TensorSpec], images: Sequence[TensorSpec]) -> str:
    """Why no input takes images: what the inputs are, and what to do."""
    if len(images) > 1:
        return (
            f"this model has {len(images)} inputs that could take an image ({_names(images)}): give all but "
            "one their values under [constants] in its model.toml, or use /v2"
        )
    if images:
        return f"the channel axis of the input {images[0].name!r} is not known; use /v2"
    if not free:
        return "every input has its value under [constants] in model.toml, so none is left for an image"
    described = ", ".join(_described(spec) for spec in free[:NAMES_SHOWN])
    return f"no input takes an image, which has four axes: {described}; use /v2"


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(repr(spec.name) for spec in specs[:NAMES_SHOWN])


def _described(spec: TensorSpec) -> str:
    if spec.shape is None:
        return f"{spec.name!r} declares no shape"
    sides = ", ".join("any" if side is None else str(side) for side in spec.shape)
    axes = "one axis" if len(spec.shape) == 1 else f"{len(spec.shape)} axes"
    return f"{spec.name!r} has {axes} ({sides})"
