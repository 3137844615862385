"""Which operation takes which parameters, and those that only HTTP has."""

from dataclasses import MISSING, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from service.declarations import declare, part_of
from service.parameters import (
    Compress,
    Drawing,
    FilterFormat,
    Finite,
    FormatName,
    MapSlice,
    Reduction,
    SizeText,
)

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
VERSION = r"^[0-9]{1,18}$"
SHA256 = r"^[0-9a-f]{64}$"


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


LayerTerms = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed),
    Field(
        description="Which layers; repeatable and comma-separated: a name, a module's path, a glob "
        "(`*`, `?`), `index:12`, `index:10..20`, `op:Conv`, `module:layer3.*`, `stage:3`, `stages`, "
        "`feature:2`, `features`, `reduction:16`, `outputs`, `all`",
        examples=[["stages"]],
    ),
]
LayerTerm = Annotated[str, Field(min_length=1, max_length=1024)]
Size = Annotated[
    SizeText | None,
    Field(description="HxW fed to the network, where its input is dynamic", examples=["224x224"]),
]


@dataclass(frozen=True, kw_only=True)
class VersionQuery:
    """What every question about a model takes."""

    version: str | None = declare(
        None, "Version of the model; the highest that loads without it", pattern=VERSION
    )


@dataclass(frozen=True, kw_only=True)
class LayersQuery(VersionQuery):
    """What `list_layers` takes."""

    layers: LayerTerms = ("all",)
    size: Size = None


@dataclass(frozen=True, kw_only=True)
class DeadlineQuery:
    """What every question that runs a network takes."""

    timeout_s: Finite = declare(60.0, "Deadline of this request, seconds", gt=0, le=86400)


@dataclass(frozen=True, kw_only=True)
class StatisticsQuery(LayersQuery, DeadlineQuery):
    """What `describe_features` takes."""

    layers: LayerTerms = ("stages",)


@dataclass(frozen=True, kw_only=True)
class JsonFeaturesQuery(Reduction, StatisticsQuery):
    """What `extract_features_json` takes."""


@dataclass(frozen=True, kw_only=True)
class FeaturesQuery(JsonFeaturesQuery):
    """What `extract_features` takes."""

    format: FormatName | None = declare(None, "Format of the arrays; it wins over Accept; npz without either")
    compress: Compress = declare("none", "For npz files meant to be kept: deflate its members")


@dataclass(frozen=True, kw_only=True)
class RenderQuery(Drawing, VersionQuery, MapSlice, DeadlineQuery):
    """What `render_features` takes."""

    layer: LayerTerm | None = declare(
        None,
        "The layer, required here or in a JSON body: an exact name, or what means one",
        examples=["stage:0"],
    )
    size: Size = None


@dataclass(frozen=True, kw_only=True)
class FiltersQuery(VersionQuery):
    """What `get_filters` takes."""

    layer: LayerTerm = declare(MISSING, "A layer that a convolution made", examples=["stage:0"])
    format: FilterFormat = declare("npz", "Arrays under `weights` (out, in / groups, kh, kw), or a picture")


@dataclass(frozen=True, kw_only=True)
class KeptQuery:
    """What every question about a kept image takes."""

    model: str = declare(MISSING, "Name of a model", pattern=MODEL_NAME, examples=["cifar-resnet"])
    digest: str | None = declare(
        None, "The model's digest, as get_model tells it: of no other is answered", pattern=SHA256
    )
    preprocessing_digest: str | None = declare(
        None,
        "The same of its preprocessing: with `version` and `digest` an answer is good for a day",
        pattern=SHA256,
    )


@dataclass(frozen=True, kw_only=True)
class KeptFeaturesQuery(FeaturesQuery, KeptQuery):
    """What `get_image_features` takes."""


@dataclass(frozen=True, kw_only=True)
class KeptRenderQuery(RenderQuery, KeptQuery):
    """What `get_image_picture` takes."""

    layer: LayerTerm = declare(MISSING, "The layer: an exact name, or what means one", examples=["stage:0"])


@dataclass(frozen=True, kw_only=True)
class KeptStatisticsQuery(StatisticsQuery, KeptQuery):
    """What `get_image_statistics` takes."""


def reduction(query: object) -> Reduction:
    """What a query asks to be done to every map; for pictures that is channels and region alone."""
    return part_of(query, Reduction)


def drawing(query: RenderQuery) -> Drawing:
    """How the query wants the map to be drawn."""
    return part_of(query, Drawing)
