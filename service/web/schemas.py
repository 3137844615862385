"""What answers hold, in pydantic, and how values become it; nothing behind the door sees it."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.engine.catalog import Summary
from service.engine.loaded import LoadedModel
from service.pipeline.work import Selected
from service.values import FieldStatus, Layer, Layout, StoredImage, TensorSpec


class LayerStatistics(BaseModel):
    """One layer's numbers, over all images of the request; null where no value is finite."""

    name: str
    shape: list[int]
    dtype: str
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    non_finite: int = Field(description="Values that are NaN or infinite")
    sparsity: float | None = Field(description="Share of zeros")
    dead_channels: list[int] | None = Field(description="Channels that are zero everywhere")
    channel_means: list[float | None] | None


class Statistics(BaseModel):
    """Statistics of feature maps."""

    model: str
    version: str
    digest: str
    layers: list[LayerStatistics]


class ImageDescription(BaseModel):
    """An image that is kept for a while."""

    id: str = Field(description="SHA-256 of its bytes")
    width: int = Field(description="Of the upright picture, pixels")
    height: int
    media_type: str = Field(description="As detected")
    expires_at: datetime = Field(description="Sending it again renews it")


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


def image_description(image: StoredImage) -> Mapping[str, Any]:
    """As `ImageDescription`."""
    return {
        "id": image.id,
        "width": image.width,
        "height": image.height,
        "media_type": image.media_type,
        "expires_at": datetime.fromtimestamp(image.expires_at, UTC).isoformat(timespec="seconds"),
    }


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
