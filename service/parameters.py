"""Parameters of requests, each declared once: name, type, default, bounds, choices, description.

The query, the JSON body, the command line, the parameters of `/v2`, OpenAPI, the page's controls and the
README's tables are derived from these declarations; `web.queries` says which operation takes which.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, GetPydanticSchema, ValidationError, create_model
from pydantic_core import core_schema

from service.errors import InvalidParameter
from service.syntax import (
    CHANNELS_SYNTAX,
    GRID,
    REGION_SYNTAX,
    SIZE,
    Channels,
    Region,
    read_channels,
    read_grid,
    read_region,
    read_size,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

DtypeChoice = Literal["native", "float32", "float16", "uint8"]
Pool = Literal["none", "avg", "max", "gem"]
FormatName = Literal["npz", "safetensors", "npy", "arrow"]
FilterFormat = Literal["npz", "safetensors", "npy", "png", "webp"]
Compress = Literal["none", "deflate"]
Style = Literal["grid", "channel", "heatmap", "overlay", "pca", "eigencam", "cam"]
Combine = Literal["mean", "max", "norm"]
Normalize = Literal["layer", "channel", "fixed"]
PictureFormat = Literal["png", "webp", "jpeg"]

# Everything is drawn in float32.
LARGEST_VALUE = 3.4028234663852886e38
# Styles that lay a plane on the photograph.
ON_PHOTOGRAPH: tuple[Style, ...] = ("overlay", "eigencam", "cam")
# The key in a schema of the styles that a parameter changes; without it, it changes all.
STYLES = "x-styles"
LONGEST_SAID = 80
LONGEST_NAME = 100
NULL = {"type": "null"}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
Declared = TypeVar("Declared", bound="DataclassInstance")


def _text(read: Callable[[str], Any], syntax: str, max_length: int) -> GetPydanticSchema:
    """Annotate a value that is written as text; `syntax` is for OpenAPI, `read` refuses in better words."""
    text = Annotated[str, Field(max_length=max_length, json_schema_extra={"pattern": syntax})]
    return GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(read, handler.generate_schema(text))
    )


def _only_for(*styles: Style) -> dict[str, Any]:
    return {"json_schema_extra": {STYLES: list(styles)}}


def _for_all_but(*styles: Style) -> dict[str, Any]:
    return _only_for(*(style for style in get_args(Style) if style not in styles))


ChannelsText = Annotated[Channels, _text(read_channels, CHANNELS_SYNTAX, 8192)]
RegionText = Annotated[Region, _text(read_region, REGION_SYNTAX, 200)]
GridText = Annotated[tuple[int, int], _text(read_grid, f"^{GRID.pattern}$", 20)]
SizeText = Annotated[tuple[int, int], _text(read_size, f"^{SIZE.pattern}$", 20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Value = Annotated[Finite, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)]
# The first is as good as any; the page offers them all.
COLORMAPS = [
    "viridis",
    "inferno",
    "magma",
    "cividis",
    "turbo",
    "gray",
    "gray_r",
    "colorbrewer:RdBu_r",
    "coolwarm",
    "seismic",
]


@dataclass(frozen=True)
class MapSlice:
    """Which part of every map is wanted."""

    channels: Annotated[
        ChannelsText | None,
        Field(
            description="Which channels: `0..15,32` (inclusive) or `top:8`, ranked per image by mean "
            "absolute activation, the chosen ones in `<layer>#channels`",
            examples=["top:8"],
        ),
    ] = None
    region: Annotated[
        RegionText | None,
        Field(
            description="`x,y,w,h` in pixels or `pct:x,y,w,h` in percent of the upright photograph: the "
            "cells whose centre lies inside",
            examples=["pct:25,25,50,50"],
        ),
    ] = None


@dataclass(frozen=True)
class Reduction(MapSlice):
    """What is done to every map, in this order: channels, region, pool or grid, cast."""

    pool: Annotated[
        Pool, Field(description="One value a channel, over rows and columns: (N, C). gem: p = 3")
    ] = "none"
    grid: Annotated[
        GridText | None, Field(description="`HxW`: adaptive average pooling to that size", examples=["7x7"])
    ] = None
    dtype: Annotated[
        DtypeChoice,
        Field(
            description="Type of the values sent; `uint8` with `<layer>#scale` and `<layer>#zero_point`: "
            "x = (q - zero_point) * scale, error at most one scale"
        ),
    ] = "native"


NO_REDUCTION = Reduction()


@dataclass(frozen=True)
class Drawing:
    """How a feature map is drawn; None leaves the choice to the drawing."""

    style: Annotated[
        Style,
        Field(
            description="`grid` channels as a mosaic; `channel` one of them; `heatmap` channels combined; "
            "`overlay` that on the photograph; `pca` three components as colours; `eigencam` the first "
            "component; `cam` evidence for a class"
        ),
    ] = "grid"
    channel: Annotated[
        int | None, Field(ge=0, le=1_000_000, description="For style=channel", **_only_for("channel"))
    ] = None
    combine: Annotated[
        Combine,
        Field(description="How heatmap and overlay combine the channels", **_only_for("heatmap", "overlay")),
    ] = "mean"
    normalize: Annotated[
        Normalize,
        Field(
            description="One scale for the whole layer, one a channel, or vmin and vmax as given",
            **_for_all_but("pca"),
        ),
    ] = "layer"
    vmin: Annotated[
        Value | None,
        Field(description="For normalize=fixed: the value of the darkest colour", **_for_all_but("pca")),
    ] = None
    vmax: Annotated[
        Value | None,
        Field(description="For normalize=fixed: the value of the brightest colour", **_for_all_but("pca")),
    ] = None
    clip: Annotated[
        Finite, Field(ge=0, le=99, description="Percent of the values that saturate", **_for_all_but("pca"))
    ] = 0.0
    colormap: Annotated[
        str | None,
        Field(
            max_length=64,
            description="A name that the package cmap knows",
            examples=COLORMAPS,
            **_for_all_but("pca"),
        ),
    ] = None
    columns: Annotated[
        int | None, Field(ge=1, le=4096, description="Tiles in a row of the grid", **_only_for("grid"))
    ] = None
    scale: Annotated[
        int | None, Field(ge=1, le=1024, description="Pixels a cell, whole", **_for_all_but("overlay"))
    ] = None
    image_weight: Annotated[
        Finite,
        Field(ge=0, le=1, description="Weight of the photograph", **_only_for(*ON_PHOTOGRAPH)),
    ] = 0.5
    target: Annotated[
        int | None, Field(ge=0, le=10_000_000, description="Class index for style=cam", **_only_for("cam"))
    ] = None
    format: Annotated[
        PictureFormat,
        Field(description="png is exact, and webp but for pictures without a colormap; jpeg is lossy"),
    ] = "png"


@functools.cache
def model_of(kind: "type[DataclassInstance]") -> type[BaseModel]:
    """The pydantic model of a dataclass of parameters, which takes no other names."""
    hints = get_type_hints(kind, include_extras=True)
    members: dict[str, Any] = {
        f.name: (hints[f.name], ... if f.default is MISSING else f.default) for f in fields(kind)
    }
    only_these = ConfigDict(extra="forbid")
    return create_model(kind.__name__, __config__=only_these, __doc__=kind.__doc__, **members)


@functools.cache
def schema_of(kind: "type[DataclassInstance]") -> Mapping[str, dict[str, Any]]:
    """The JSON Schema of each parameter; what may be left out is not null, which no query can say."""
    properties: dict[str, Any] = without_null(model_of(kind).model_json_schema())["properties"]
    return properties


def read(kind: type[Declared], given: Mapping[str, Any], *, strict: bool = False) -> Declared:
    """Read parameters by their names; with `strict` no text is taken for a number.

    Raises:
        InvalidParameter: a name that does not exist, or a wrong value.
    """
    names = model_of(kind).model_fields
    for name in given:
        if name not in names:
            known = ", ".join(names) or "none"
            raise InvalidParameter(
                f"there is no parameter {name[:LONGEST_NAME]!r}; there are: {known}",
                parameter=name[:LONGEST_NAME],
            )
    try:
        return kind(**dict(model_of(kind).model_validate(given, strict=strict)))
    except ValidationError as error:
        # Without the cause, whose text would be logged and holds more of what was sent.
        raise _refusal(error) from None


def part_of(values: object, kind: type[Declared]) -> Declared:
    """Take over the values that have the names of a class of parameters."""
    return kind(**{f.name: getattr(values, f.name) for f in fields(kind) if hasattr(values, f.name)})


def allowed(declared: Mapping[str, Any]) -> str:
    """The choices or bounds of a parameter in words; empty where it has none."""
    if "enum" in declared:
        return ", ".join(declared["enum"])
    return ", ".join(f"{word} {declared[key]:.12g}" for key, word in BOUNDS.items() if key in declared)


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """An object's schema whose members may be left out instead of null."""
    return schema | {"properties": {name: _not_null(told) for name, told in schema["properties"].items()}}


def _not_null(told: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in told.get("anyOf", ()) if kind != NULL]
    if NULL not in told.get("anyOf", ()) or len(kinds) != 1:
        return told
    kind: dict[str, Any] = kinds[0]
    return kind | {key: value for key, value in told.items() if key != "anyOf" and value is not None}


def _refusal(error: ValidationError) -> InvalidParameter:
    """What was given and what is allowed."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part)[:LONGEST_NAME] for part in first["loc"])
    given = first["input"]
    said = f"={str(given)[:LONGEST_SAID]}" if isinstance(given, str | int | float) else ""
    return InvalidParameter(f"{name}{said}: {first['msg']}", parameter=name)
