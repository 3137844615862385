"""The wire's shapes in pydantic and their conversion to values; nothing behind the door sees them."""

from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.engine.catalog import Summary
from service.engine.loaded import LoadedModel
from service.output.words import read_channels, read_grid, read_region
from service.pipeline.work import Selected
from service.values import Compress, DtypeChoice, FieldStatus, Layer, Layout, Pool, Reduction, TensorSpec

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
VERSION = r"^[0-9]{1,18}$"
SIDES = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
FormatName = Literal["npz", "safetensors", "npy"]


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
        description="Which layers; repeatable and comma-separated: a name, a glob (`*`, `?`), `index:12`, "
        "`index:10..20`, `op:Conv`, `stage:3`, `stages`, `reduction:16`, `outputs`, `all`",
        examples=[["stages"]],
    )
    size: Size | None = Field(None, description="HxW fed to the network, where its input is dynamic")


class JsonFeaturesQuery(LayersQuery):
    """What `extract_features_json` takes."""

    layers: Words = Field(default=["stages"], description=LayersQuery.model_fields["layers"].description)
    channels: str | None = Field(
        None,
        max_length=8192,
        description="Which channels: `0..15,32` (inclusive) or `top:8`, ranked per image by mean absolute "
        "activation, the chosen ones in `<layer>#channels`",
        examples=["top:8"],
    )
    region: str | None = Field(
        None,
        max_length=200,
        description="`x,y,w,h` in pixels or `pct:x,y,w,h` in percent of the upright photograph: the cells "
        "whose centre lies inside",
        examples=["pct:25,25,50,50"],
    )
    pool: Pool = Field("none", description="Over rows and columns; leaves (N, C). gem: p = 3")
    grid: str | None = Field(
        None, max_length=20, description="`HxW`: adaptive average pooling to that size", examples=["7x7"]
    )
    dtype: DtypeChoice = Field(
        "native",
        description="Type of the values sent; `uint8` with `<layer>#scale` and `<layer>#zero_point`: "
        "x = (q - zero_point) * scale",
    )
    timeout_s: float = Field(
        60.0, gt=0, le=86400, allow_inf_nan=False, description="Deadline of this request, seconds"
    )


class FeaturesQuery(JsonFeaturesQuery):
    """What `extract_features` takes."""

    format: FormatName | None = Field(
        None, description="Format of the arrays; it wins over Accept; npz without either"
    )
    compress: Compress = Field("none", description="For npz files meant to be kept: deflate its members")


class ModelSummary(BaseModel):
    """One model in the list."""

    name: str
    versions: list[str]
    default_version: str | None
    state: Literal["unloaded", "loading", "ready", "failed"]
    reason: str | None = Field(description="Why a model or one of its versions failed")


class ModelList(BaseModel):
    """Every model, failed ones included."""

    models: list[ModelSummary]


class TensorDescription(BaseModel):
    """An input of the graph; null stands for a dynamic axis."""

    name: str
    dtype: str = Field(description="numpy's name")
    shape: list[int | None] | None
    layout: Layout | None


class PreprocessingDescription(BaseModel):
    """How a photograph becomes the tensor: `x = (pixel * scale - mean) / std`."""

    size: list[int] = Field(description="[H, W] fed to the network")
    fit: Literal["crop", "stretch", "letterbox"]
    resize: int | None = Field(description="Short side before the centre crop, pixels")
    pad_value: int
    pad_at: Literal["centre", "top-left"]
    interpolation: str
    color: Literal["rgb", "bgr", "gray", "y"]
    scale: float
    mean: list[float]
    std: list[float]
    source: Literal["model.toml", "default"]


class ModelDescription(BaseModel):
    """Everything about one version of a model but its layers."""

    name: str
    version: str
    digest: str = Field(description="SHA-256 over the ONNX file and its external data")
    preprocessing_digest: str
    inputs: list[TensorDescription]
    outputs: list[str]
    preprocessing: PreprocessingDescription | None
    no_image_reason: str | None = Field(description="Why it takes no images, where it does not")
    labels: list[str]
    licence: str | None
    source: str | None
    layers: int = Field(description="Number of layers")
    stages: list[str] = Field(description="Names of the layers that end a stage")
    provider: Literal["cpu", "cuda"]


class ReceptiveFieldDescription(BaseModel):
    """Which input pixels a cell depends on, [y, x]."""

    size: list[float] | None
    start: list[float] | None
    status: FieldStatus


class LayerDescription(BaseModel):
    """One layer for one image; what is unknown is null, never guessed.

    A cell `u` covers the input's pixels `start + u * reduction` to `start + u * reduction + size - 1`.
    """

    name: str
    index: int
    node: str
    op: str
    shape: list[int | None] | None
    dtype: str = Field(description="numpy's name")
    layout: Layout | None
    channel_axis: int | None
    batch_axis: int | None
    channels: int | None
    reduction: list[float] | None = Field(description="Input pixels a cell, [y, x]")
    receptive_field: ReceptiveFieldDescription
    macs: int | None = Field(description="Multiply-accumulates of this layer")
    params: int
    cumulative_macs: int | None = Field(description="Of everything that this layer needs")
    bytes_per_image: int | None
    stage: int | None
    after_activation: bool


class LayerList(BaseModel):
    """The layers selected, in graph order: also the dry run of a request."""

    model: str
    version: str
    digest: str
    layers: list[LayerDescription]
    total_bytes: int | None = Field(description="Of all these layers for one image; null if one is unknown")
    total_macs: int | None = Field(description="Of everything that these layers need, counted once")


class LayerNumbers(BaseModel):
    """One layer's values, flat, row-major."""

    name: str
    shape: list[int]
    dtype: str
    data: list[float]


class FeaturesAsJson(BaseModel):
    """Feature maps as numbers."""

    model: str
    version: str
    layers: list[LayerNumbers]


class VersionAnswer(BaseModel):
    """What runs here and what it allows."""

    service: str
    runtime: str
    settings: dict[str, Any] = Field(description="Limits and how networks are run")


class Problem(BaseModel):
    """Every refusal (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="urn:featuremaps:problem:<code>")
    title: str
    status: int
    detail: str = Field(description="What was given, what is allowed, how to find out")
    instance: str
    code: str
    request_id: str
    error: str = Field(description="The text of `detail`, which clients of the v2 protocol read")


def sides(size: str | None) -> tuple[int, int] | None:
    """`HxW`, as the pattern has it, to (H, W)."""
    if size is None:
        return None
    height, width = size.split("x")
    return int(height), int(width)


def reduction(query: JsonFeaturesQuery) -> Reduction:
    """What the query asks to be done to every map.

    Raises:
        InvalidParameter
    """
    return Reduction(
        channels=read_channels(query.channels) if query.channels is not None else None,
        region=read_region(query.region) if query.region is not None else None,
        pool=query.pool,
        grid=read_grid(query.grid) if query.grid is not None else None,
        dtype=query.dtype,
    )


def model_summary(summary: Summary) -> Mapping[str, Any]:
    """As `ModelSummary`."""
    return asdict(summary)


def model_description(model: LoadedModel) -> Mapping[str, Any]:
    """As `ModelDescription`."""
    table = model.layers()
    return {
        **asdict(model.identity),
        "inputs": [_tensor(spec) for spec in model.inputs],
        "outputs": model.outputs,
        "preprocessing": asdict(model.recipe) if model.recipe else None,
        "no_image_reason": model.no_image_reason or None,
        "labels": model.labels,
        "licence": model.manifest.licence,
        "source": model.manifest.source,
        "layers": len(table.layers),
        "stages": [layer.name for layer in table.stages()],
        "provider": model.provider,
    }


def layer_list(selected: Selected) -> Mapping[str, Any]:
    """As `LayerList`."""
    layers, who = selected.layers, selected.model.identity
    sizes = [layer.bytes_per_image for layer in layers]
    return {
        "model": who.name,
        "version": who.version,
        "digest": who.digest,
        "layers": [_layer(layer) for layer in layers],
        "total_bytes": None if None in sizes else sum(size or 0 for size in sizes),
        "total_macs": selected.total_macs,
    }


def _tensor(spec: TensorSpec) -> Mapping[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "layout": spec.layout}


def _layer(layer: Layer) -> Mapping[str, Any]:
    field = layer.receptive_field
    return {
        "name": layer.name,
        "index": layer.index,
        "node": layer.node,
        "op": layer.op,
        "shape": layer.shape,
        "dtype": layer.dtype,
        "layout": layer.layout,
        "channel_axis": layer.channel_axis,
        "batch_axis": layer.batch_axis,
        "channels": layer.channels,
        "reduction": _numbers(layer.reduction),
        "receptive_field": {
            "size": _numbers(field.size),
            "start": _numbers(field.start),
            "status": field.status,
        },
        "macs": layer.macs,
        "params": layer.params,
        "cumulative_macs": layer.cumulative_macs,
        "bytes_per_image": layer.bytes_per_image,
        "stage": layer.stage,
        "after_activation": layer.after_activation,
    }


def _numbers(pair: tuple[Fraction | float, Fraction | float] | None) -> list[float] | None:
    """Whole numbers as such, others as floats."""
    if pair is None:
        return None
    return [int(value) if value == int(value) else float(value) for value in pair]
