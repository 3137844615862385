"""Parameters of requests, each declared once: name, type, default, bounds, choices, description.

The query, the JSON body, the command line, the parameters of `/v2`, OpenAPI, the page's controls and the
README's tables are derived from these declarations; `web.queries` says which operation takes which.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field

from service.declarations import declare, text_of
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

DtypeChoice = Literal["native", "float32", "float16", "uint8"]
Pool = Literal["none", "avg", "max", "gem"]
FormatName = Literal["npz", "safetensors", "npy", "arrow"]
FilterFormat = Literal["npz", "safetensors", "npy", "png", "webp"]
Compress = Literal["none", "deflate"]
Style = Literal["grid", "channel", "heatmap", "overlay", "pca", "eigencam", "cam"]
Combine = Literal["mean", "max", "norm"]
Normalize = Literal["layer", "channel", "fixed"]
PictureFormat = Literal["png", "webp", "jpeg"]
ChannelsText = Annotated[Channels, text_of(read_channels, CHANNELS_SYNTAX, 8192)]
RegionText = Annotated[Region, text_of(read_region, REGION_SYNTAX, 200)]
GridText = Annotated[tuple[int, int], text_of(read_grid, f"^{GRID.pattern}$", 20)]
SizeText = Annotated[tuple[int, int], text_of(read_size, f"^{SIZE.pattern}$", 20)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# Everything is drawn in float32.
LARGEST_VALUE = 3.4028234663852886e38
Value = Annotated[Finite, Field(ge=-LARGEST_VALUE, le=LARGEST_VALUE)]


# What the page offers; any other name that cmap knows is taken too.
COLORMAPS = ["viridis", "inferno", "magma", "cividis", "turbo", "gray", "gray_r"]
SIGNED_COLORMAPS = ["colorbrewer:RdBu_r", "coolwarm", "seismic"]
# Styles that lay a plane on the photograph, those with a scale, and those made of cells.
ON_PHOTOGRAPH: tuple[Style, ...] = ("overlay", "eigencam", "cam")
SCALED: tuple[Style, ...] = tuple(style for style in get_args(Style) if style != "pca")
OF_CELLS: tuple[Style, ...] = tuple(style for style in get_args(Style) if style != "overlay")


@dataclass(frozen=True)
class MapSlice:
    """Which part of every map is wanted."""

    channels: ChannelsText | None = declare(
        None,
        "Which channels: `0..15,32` (inclusive) or `top:8`, ranked per image by mean absolute activation, "
        "the chosen ones in `<layer>#channels`",
        examples=["top:8"],
    )
    region: RegionText | None = declare(
        None,
        "`x,y,w,h` in pixels or `pct:x,y,w,h` in percent of the upright photograph: the cells whose centre "
        "lies inside",
        examples=["pct:25,25,50,50"],
    )


@dataclass(frozen=True)
class Reduction(MapSlice):
    """What is done to every map, in this order: channels, region, pool or grid, cast."""

    pool: Pool = declare("none", "One value a channel, over rows and columns: (N, C). gem: p = 3")
    grid: GridText | None = declare(None, "`HxW`: adaptive average pooling to that size", examples=["7x7"])
    dtype: DtypeChoice = declare(
        "native",
        "Type of the values sent; `uint8` with `<layer>#scale` and `<layer>#zero_point`: "
        "x = (q - zero_point) * scale, error at most one scale",
    )


NO_REDUCTION = Reduction()


@dataclass(frozen=True)
class Drawing:
    """How a feature map is drawn; None leaves the choice to the drawing."""

    style: Style = declare(
        "grid",
        "`grid` channels as a mosaic; `channel` one of them; `heatmap` channels combined; `overlay` that on "
        "the photograph; `pca` three components as colours; `eigencam` the first component; `cam` evidence "
        "for a class",
    )
    channel: int | None = declare(None, "For style=channel", ge=0, le=1_000_000, styles=("channel",))
    combine: Combine = declare(
        "mean", "How heatmap and overlay combine the channels", styles=("heatmap", "overlay")
    )
    normalize: Normalize = declare(
        "layer", "One scale for the whole layer, one a channel, or vmin and vmax as given", styles=SCALED
    )
    vmin: Value | None = declare(None, "For normalize=fixed: the value of the darkest colour", styles=SCALED)
    vmax: Value | None = declare(
        None, "For normalize=fixed: the value of the brightest colour", styles=SCALED
    )
    clip: Finite = declare(0.0, "Percent of the values that saturate", ge=0, le=99, styles=SCALED)
    colormap: str | None = declare(
        None,
        "A name that the package cmap knows",
        max_length=64,
        examples=[*COLORMAPS, *SIGNED_COLORMAPS],
        styles=SCALED,
    )
    columns: int | None = declare(None, "Tiles in a row of the grid", ge=1, le=4096, styles=("grid",))
    scale: int | None = declare(None, "Pixels a cell, whole", ge=1, le=1024, styles=OF_CELLS)
    image_weight: Finite = declare(0.5, "Weight of the photograph", ge=0, le=1, styles=ON_PHOTOGRAPH)
    target: int | None = declare(None, "Class index for style=cam", ge=0, le=10_000_000, styles=("cam",))
    format: PictureFormat = declare(
        "png", "png is exact, and webp but for pictures without a colormap; jpeg is lossy"
    )
