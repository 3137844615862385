"""`model.toml` beside the ONNX file: what the file cannot say."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ModelFailed
from service.values import Array, Color, Fit, Interpolation, PadAt, Preprocessing, TensorSpec

Side = Annotated[int, Field(ge=1, le=16384)]
CHANNELS_OF_COLOR = {"rgb": 3, "bgr": 3, "rgba": 4, "gray": 1, "y": 1}


Finite = Annotated[float, Field(allow_inf_nan=False)]


class InputSection(BaseModel):
    """`[input]`: how a photograph becomes the tensor, `x = (pixel * scale - mean) / std`.

    With `images` above 1 so many images lie one after the other along the channels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: tuple[Side, Side] | None = None
    fit: Fit | None = None
    resize: Side | None = None
    pad_value: int = Field(default=114, ge=0, le=255)
    pad_at: PadAt = "centre"
    interpolation: Interpolation = "bilinear"
    color: Color | None = None
    images: int = Field(default=1, ge=1, le=64)
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    mean: list[Finite] | Finite = 0.0
    std: list[Annotated[Finite, Field(gt=0)]] | Annotated[Finite, Field(gt=0)] = 1.0

    @property
    def says_channels(self) -> bool:
        """Whether it says how images fill channels that are not those of one plain picture."""
        return self.color is not None or self.images > 1


class Manifest(BaseModel):
    """The whole file; every key is optional, an unknown one is an error.

    `warm` holds layers, or lists of layers that are asked together, to make ready before the first request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: str | None = None
    licence: str | None = None
    source: str | None = None
    warm: list[str | list[str]] = Field(default_factory=list, max_length=64)
    constants: dict[str, Any] = Field(default_factory=dict)
    input: InputSection | None = None


def read_manifest(folder: Path) -> Manifest:
    """Read `model.toml` of a model's folder; without the file everything has its default.

    Raises:
        ModelFailed: not TOML, an unknown key or a wrong value.
    """
    path = folder / "model.toml"
    if not path.is_file():
        return Manifest()
    try:
        return Manifest.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelFailed("model.toml is not valid TOML in UTF-8") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFailed(f"model.toml: {where}: {first['msg']}") from error


def read_labels(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """The classes' names in order, one a line; empty without a file.

    Raises:
        ModelFailed: the file is missing, not UTF-8 or outside the model's folder.
    """
    if manifest.labels is None:
        return ()
    path = (folder / manifest.labels).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelFailed("model.toml: labels must lie in the model's own folder")
    try:
        # Line breaks of files only: others, such as a form feed, may stand in a label.
        lines = path.read_text("utf-8-sig").rstrip("\n").split("\n")
    except (OSError, ValueError) as error:
        raise ModelFailed(f"the labels file {manifest.labels!r} cannot be read") from error
    return tuple(lines) if lines != [""] else ()


def preprocessing(manifest: Manifest, spec: TensorSpec, size: tuple[int, int]) -> Preprocessing:
    """The recipe for an image input whose layout is known, at the served size (H, W).

    uint8 inputs take pixels as they are unless the manifest says otherwise.

    Raises:
        ModelFailed: the manifest contradicts the graph.
    """
    section = manifest.input or InputSection()
    color = _color(section, spec)
    fit = section.fit or ("crop" if section.resize else "stretch")
    _check_resize(section.resize, fit, size)
    return Preprocessing(
        size=size,
        fit=fit,
        resize=section.resize,
        pad_value=section.pad_value,
        pad_at=section.pad_at,
        interpolation=section.interpolation,
        color=color,
        scale=section.scale or (1.0 if spec.dtype == "uint8" else 1 / 255),
        mean=_per_channel(section.mean, CHANNELS_OF_COLOR[color], "mean"),
        std=_per_channel(section.std, CHANNELS_OF_COLOR[color], "std"),
        source="model.toml" if manifest.input else "default",
        images=section.images,
    )


def _color(section: InputSection, spec: TensorSpec) -> Color:
    assert spec.shape is not None
    channels, images = spec.shape[1 if spec.layout == "NCHW" else 3], section.images
    color: Color = section.color or ("gray" if channels == images else "rgb")
    made = images * CHANNELS_OF_COLOR[color]
    if channels not in (None, made):
        stacked = f"{images} images of " if images > 1 else ""
        raise ModelFailed(
            f"model.toml: {stacked}color {color!r} does not fit an input of {channels} channels"
        )
    return color


def constants(manifest: Manifest, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The values of `[constants]` in the dtypes of the inputs that they are for.

    Raises:
        ModelFailed: there is no such input, or the value does not fit.
    """
    specs = {spec.name: spec for spec in inputs}
    values = {}
    for name, value in manifest.constants.items():
        if name not in specs:
            raise ModelFailed(f"model.toml: constants: the graph has no input {name!r}")
        values[name] = _constant(name, value, specs[name])
    return values


def _constant(name: str, value: Any, spec: TensorSpec) -> Array:
    """As the graph takes it, and no other value than is written."""
    try:
        given: Array = np.asarray(value)
        with np.errstate(over="ignore"):
            found: Array = given.astype(spec.dtype)
        fits = _is_same(found, given)
    except (ValueError, TypeError, OverflowError):
        fits = False
    if not fits:
        raise ModelFailed(f"model.toml: constants: {name} is {str(value)[:100]}, which no {spec.dtype} holds")
    if spec.shape is not None and not _is_of(found.shape, spec.shape):
        sides = ["any" if side is None else side for side in spec.shape]
        raise ModelFailed(f"model.toml: constants: {name} has shape {list(found.shape)} and takes {sides}")
    return found


def _is_same(found: Array, given: Array) -> bool:
    """Floating point may round, but not to infinity; texts are no numbers."""
    if (found.dtype.kind == "U") != (given.dtype.kind == "U"):
        return False
    if found.dtype.kind == "f":
        return bool((np.isfinite(found) == np.isfinite(given)).all())
    return np.array_equal(found, given)


def _is_of(shape: tuple[int, ...], allowed: Sequence[int | None]) -> bool:
    sides = zip(shape, allowed, strict=False)
    return len(shape) == len(allowed) and all(free in (None, side) for side, free in sides)


def at_size(recipe: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """The same recipe at another size: the short side before the crop keeps its proportion."""
    resize = recipe.resize
    if resize is not None:
        resize = max(max(size), round(resize * max(size) / max(recipe.size)))
    return replace(recipe, size=size, resize=resize)


def digest(recipe: Preprocessing | None, manifest: Manifest) -> str:
    """SHA-256 over everything that decides what the network sees."""
    content = {"recipe": asdict(recipe) if recipe else None, "constants": manifest.constants}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def served_size(wanted: tuple[int, int] | None, fixed: Sequence[int | None], default: int) -> tuple[int, int]:
    """The size (H, W) to serve: the graph's fixed sides win, and the manifest may only repeat them.

    Raises:
        ModelFailed: the manifest contradicts the graph.
    """
    sides = []
    for asked, given in zip(wanted or (None, None), fixed, strict=True):
        if asked and given and asked != given:
            raise ModelFailed(f"model.toml: size {asked} contradicts the graph's fixed {given}")
        sides.append(given or asked or default)
    return sides[0], sides[1]


def _check_resize(resize: int | None, fit: Fit, size: tuple[int, int]) -> None:
    if resize is None:
        return
    if fit != "crop":
        raise ModelFailed(f"model.toml: resize is for fit = 'crop', not for {fit!r}")
    if resize < max(size):
        raise ModelFailed(f"model.toml: resize {resize} is smaller than the crop {size[0]}x{size[1]}")


def _per_channel(value: list[float] | float, channels: int, name: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list) else (value,) * channels
    if len(values) != channels:
        raise ModelFailed(f"model.toml: {name} has {len(values)} values for {channels} channels")
    return values
