"""What requests may ask, in pydantic, and its conversion to values."""

from dataclasses import fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.output.words import (
    DECIMAL,
    GRID,
    PERCENT,
    RANGE,
    TOP,
    read_channels,
    read_grid,
    read_region,
)
from service.values import (
    Combine,
    Compress,
    Drawing,
    DtypeChoice,
    Normalize,
    PictureFormat,
    Pool,
    Reduction,
    Style,
)

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
VERSION = r"^[0-9]{1,18}$"
SHA256 = r"^[0-9a-f]{64}$"
SIDES = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
FormatName = Literal["npz", "safetensors", "npy", "arrow"]
FilterFormat = Literal["npz", "safetensors", "npy", "png", "webp"]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_listed)]
Size = Annotated[str, Field(pattern=SIDES, examples=["224x224"])]


class VersionQuery(BaseModel):
    """What every question about a model takes."""

    model_config = ConfigDict(extra="forbid")

    version: str | None = Field(
        None, pattern=VERSION, description="Version of the model; the highest that loads without it"
    )


class LayersQuery(VersionQuery):
    """What `list_layers` takes."""

    layers: Words = Field(
        default=["all"],
        description="Which layers; repeatable and comma-separated: a name, a module's path, a glob "
        "(`*`, `?`), `index:12`, `index:10..20`, `op:Conv`, `module:layer3.*`, `stage:3`, `stages`, "
        "`feature:2`, `features`, `reduction:16`, `outputs`, `all`",
        examples=[["stages"]],
    )
    size: Size | None = Field(None, description="HxW fed to the network, where its input is dynamic")


class DeadlineQuery(BaseModel):
    """What every question that runs a network takes."""

    model_config = ConfigDict(extra="forbid")

    timeout_s: float = Field(
        60.0, gt=0, le=86400, allow_inf_nan=False, description="Deadline of this request, seconds"
    )


class StatisticsQuery(LayersQuery, DeadlineQuery):
    """What `describe_features` takes."""

    layers: Words = Field(
        default=["stages"], description=LayersQuery.model_fields["layers"].description, examples=[["stages"]]
    )


class PartQuery(BaseModel):
    """Which part of a map is wanted."""

    channels: str | None = Field(
        None,
        max_length=8192,
        description="Which channels: `0..15,32` (inclusive) or `top:8`, ranked per image by mean absolute "
        "activation, the chosen ones in `<layer>#channels`",
        examples=["top:8"],
        json_schema_extra={"pattern": f"^({TOP.pattern}|{RANGE.pattern}(,{RANGE.pattern})*)$"},
    )
    region: str | None = Field(
        None,
        max_length=200,
        description="`x,y,w,h` in pixels or `pct:x,y,w,h` in percent of the upright photograph: the cells "
        "whose centre lies inside",
        examples=["pct:25,25,50,50"],
        json_schema_extra={"pattern": f"^({PERCENT})?({DECIMAL.pattern})(,({DECIMAL.pattern})){{3}}$"},
    )


class JsonFeaturesQuery(StatisticsQuery, PartQuery):
    """What `extract_features_json` takes."""

    pool: Pool = Field("none", description="Over rows and columns; leaves (N, C). gem: p = 3")
    grid: str | None = Field(
        None,
        max_length=20,
        description="`HxW`: adaptive average pooling to that size",
        examples=["7x7"],
        json_schema_extra={"pattern": f"^{GRID.pattern}$"},
    )
    dtype: DtypeChoice = Field(
        "native",
        description="Type of the values sent; `uint8` with `<layer>#scale` and `<layer>#zero_point`: "
        "x = (q - zero_point) * scale",
    )


class FeaturesQuery(JsonFeaturesQuery):
    """What `extract_features` takes."""

    format: FormatName | None = Field(
        None, description="Format of the arrays; it wins over Accept; npz without either"
    )
    compress: Compress = Field("none", description="For npz files meant to be kept: deflate its members")


class RenderQuery(VersionQuery, PartQuery, DeadlineQuery):
    """What `render_features` takes."""

    layer: str | None = Field(
        None,
        min_length=1,
        max_length=1024,
        description="The layer, required here or in a JSON body: an exact name, or what means one",
        examples=["stage:0"],
    )
    style: Style = Field(
        "grid",
        description="`grid` channels as a mosaic; `channel` one of them; `heatmap` channels combined; "
        "`overlay` that on the photograph; `pca` three components as colours; `eigencam` the first "
        "component; `cam` evidence for a class",
    )
    channel: int | None = Field(None, ge=0, le=1_000_000, description="For style=channel")
    combine: Combine = Field("mean", description="How heatmap and overlay combine the channels")
    normalize: Normalize = Field(
        "layer", description="One scale for the whole layer, one a channel, or vmin and vmax as given"
    )
    vmin: float | None = Field(
        None, allow_inf_nan=False, description="For normalize=fixed: the value of the darkest colour"
    )
    vmax: float | None = Field(
        None, allow_inf_nan=False, description="For normalize=fixed: the value of the brightest colour"
    )
    clip: float = Field(
        0.0, ge=0, lt=50, allow_inf_nan=False, description="Percent of the values that saturate"
    )
    colormap: str | None = Field(
        None, max_length=64, description="A name that the package cmap knows", examples=["viridis"]
    )
    columns: int | None = Field(None, ge=1, le=10_000, description="Tiles in a row of the grid")
    scale: int | None = Field(None, ge=1, le=1024, description="Pixels a cell, whole")
    image_weight: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="Weight of the photograph")
    target: int | None = Field(None, ge=0, le=10_000_000, description="Class index for style=cam")
    format: PictureFormat = Field(
        "png", description="png is exact, and webp but for pictures without a colormap; jpeg is lossy"
    )
    size: Size | None = LayersQuery.model_fields["size"]  # type: ignore[assignment]


class FiltersQuery(VersionQuery):
    """What `get_filters` takes."""

    layer: str = Field(
        min_length=1, max_length=1024, description="A layer that a convolution made", examples=["stage:0"]
    )
    format: FilterFormat = Field(
        "npz", description="Arrays under `weights` (out, in / groups, kh, kw), or a picture"
    )


class KeptQuery(BaseModel):
    """What every question about a kept image takes."""

    model: str = Field(pattern=MODEL_NAME, description="Name of a model", examples=["cifar-resnet"])
    digest: str | None = Field(
        None, pattern=SHA256, description="The model's digest, as get_model tells it: of no other is answered"
    )
    preprocessing_digest: str | None = Field(
        None,
        pattern=SHA256,
        description="The same of its preprocessing: with `version` and `digest` an answer is good for a day",
    )


class KeptFeaturesQuery(FeaturesQuery, KeptQuery):
    """What `get_image_features` takes."""


class KeptRenderQuery(RenderQuery, KeptQuery):
    """What `get_image_picture` takes."""

    layer: str = Field(
        min_length=1,
        max_length=1024,
        description="The layer: an exact name, or what means one",
        examples=["stage:0"],
    )


class KeptStatisticsQuery(StatisticsQuery, KeptQuery):
    """What `get_image_statistics` takes."""


def sides(size: str | None) -> tuple[int, int] | None:
    """`HxW`, as the pattern has it, to (H, W)."""
    if size is None:
        return None
    height, width = size.split("x")
    return int(height), int(width)


def part(query: PartQuery) -> Reduction:
    """Which part of every map the query asks for.

    Raises:
        InvalidParameter
    """
    return Reduction(
        channels=read_channels(query.channels) if query.channels is not None else None,
        region=read_region(query.region) if query.region is not None else None,
    )


def reduction(query: JsonFeaturesQuery) -> Reduction:
    """What the query asks to be done to every map.

    Raises:
        InvalidParameter
    """
    return replace(
        part(query),
        pool=query.pool,
        grid=read_grid(query.grid) if query.grid is not None else None,
        dtype=query.dtype,
    )


def drawing(query: RenderQuery) -> Drawing:
    """How the query wants the map to be drawn."""
    return Drawing(**{f.name: getattr(query, f.name) for f in fields(Drawing)})
