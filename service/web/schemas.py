"""What answers hold, in pydantic, and how values become it; nothing behind the door sees it."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.engine.catalog import State, Summary
from service.engine.loaded import LoadedModel
from service.pipeline.work import Selected
from service.values import (
    Color,
    FieldStatus,
    Fit,
    Interpolation,
    Layer,
    Layout,
    PadAt,
    SizeSource,
    StoredImage,
)

PreprocessingSource = Literal["model.toml", "default"]
Provider = Literal["cpu", "cuda"]


NAME = Field(description="Name of the model", examples=["cifar-resnet"])
VERSION = Field(description="Version of the model, digits", examples=["1"])
DIGEST = Field(description="SHA-256 over the model's ONNX file and its external data, 64 hex digits")
LEFT_OUT = Field(
    description="Layers that `all` and the like mean and that could not be sent, with the reasons"
)
LAYER = Field(description="The layer's name in the graph", examples=["stage1.block2.relu"])
DTYPE = Field(description="numpy's name", examples=["float32"])


class LayerStatistics(BaseModel):
    """One layer's numbers, over all images of the request; null where no value is finite."""

    name: str = LAYER
    shape: list[int] = Field(description="Of the map, axes as in the graph, images along the batch axis")
    dtype: str = DTYPE
    min: float | None = Field(description="Smallest finite value")
    max: float | None = Field(description="Largest finite value")
    mean: float | None = Field(description="Of the finite values")
    std: float | None = Field(description="Standard deviation of the finite values")
    non_finite: int = Field(description="Values that are NaN or infinite")
    sparsity: float | None = Field(description="Share of zeros, 0 to 1")
    dead_channels: list[int] | None = Field(description="Channels that are zero everywhere")
    channel_means: list[float | None] | None = Field(description="Mean of each channel's finite values")


class Statistics(BaseModel):
    """Statistics of feature maps."""

    model: str = NAME
    version: str = VERSION
    digest: str = DIGEST
    layers: list[LayerStatistics] = Field(description="In graph order")
    left_out: dict[str, str] = LEFT_OUT


class ImageDescription(BaseModel):
    """An image that is kept for a while."""

    id: str = Field(description="SHA-256 of its bytes, 64 hex digits")
    width: int = Field(description="Of the upright picture, pixels")
    height: int = Field(description="Of the upright picture, pixels")
    media_type: str = Field(description="As detected", examples=["image/jpeg"])
    expires_at: datetime = Field(description="Until when it is kept (RFC 3339); sending it again renews it")


class ModelSummary(BaseModel):
    """One model in the list."""

    name: str = NAME
    versions: list[str] = Field(description="Every version on disk, highest first", examples=[["1"]])
    default_version: str | None = Field(description="Which answers where none is asked for")
    state: State = Field(description="Of the version that answers where none is asked for")
    reason: str | None = Field(description="Why the model or one of its versions failed")


class UploadedModel(BaseModel):
    """A version that was uploaded."""

    model: str = NAME
    version: str = VERSION
    digest: str = DIGEST
    bytes: int = Field(description="Of the file")


class ModelList(BaseModel):
    """Every model, failed ones included."""

    models: list[ModelSummary] = Field(description="By name")


class TensorDescription(BaseModel):
    """An input of the graph."""

    name: str = Field(description="Its name in the graph")
    dtype: str = DTYPE
    shape: list[int | None] | None = Field(description="Null for a dynamic axis, or for an unknown rank")
    layout: Layout | None = Field(description="The order of its axes; null where that is unknown")


class PreprocessingDescription(BaseModel):
    """How a photograph becomes the tensor: `x = (pixel * scale - mean) / std`."""

    size: list[int] = Field(description="[H, W] fed to the network, pixels")
    fit: Fit = Field(description="How the photograph becomes that large")
    resize: int | None = Field(description="Short side before the centre crop, pixels")
    pad_value: int = Field(description="What a letterbox is filled with, 0 to 255")
    pad_at: PadAt = Field(description="Where a letterboxed photograph lies")
    interpolation: Interpolation = Field(description="How it is resized")
    color: Color = Field(description="Channels fed to the network, in their order")
    scale: float = Field(description="Factor of a pixel's value, 0 to 255")
    mean: list[float] = Field(description="One a channel")
    std: list[float] = Field(description="One a channel")
    source: PreprocessingSource = Field(description="Whether the model's own file says so")
    images: int = Field(description="How many images lie one after the other along the channels")


class ModelDescription(BaseModel):
    """Everything about one version of a model but its layers."""

    name: str = NAME
    version: str = VERSION
    digest: str = DIGEST
    preprocessing_digest: str = Field(description="SHA-256 of the preprocessing, 64 hex digits")
    inputs: list[TensorDescription] = Field(description="Inputs of the graph, the image's first")
    outputs: list[str] = Field(description="Outputs that the graph declares", examples=[["logits"]])
    preprocessing: PreprocessingDescription | None = Field(description="Null where it takes no images")
    size_source: SizeSource | None = Field(
        description="Where the size served without `size=` comes from; `guessed`: one that it runs at"
    )
    no_image_reason: str | None = Field(description="Why it takes no images, where it does not")
    labels: list[str] = Field(description="Names of the classes, in their order")
    licence: str | None = Field(description="Of the model", examples=["Apache-2.0"])
    source: str | None = Field(description="Where the model comes from")
    layers: int = Field(description="Number of layers")
    stages: list[str] = Field(description="Names of the layers that end a stage")
    provider: Provider = Field(description="What runs it")


class ReceptiveFieldDescription(BaseModel):
    """Which input pixels a cell depends on, [y, x]."""

    size: list[float] | None = Field(description="[y, x], pixels of the network's input")
    start: list[float] | None = Field(description="First pixel of cell 0, [y, x]")
    status: FieldStatus = Field(description="How far it is known")


class LayerDescription(BaseModel):
    """One layer for one image; what is unknown is null, never guessed.

    A cell `u` covers the input's pixels `start + u * reduction` to `start + u * reduction + size - 1`.
    """

    name: str = LAYER
    index: int = Field(description="Position in graph order, from 0")
    node: str = Field(description="The graph's node that makes it")
    op: str = Field(description="That node's operator", examples=["Relu"])
    shape: list[int | None] | None = Field(description="At the size served, axes as in the graph")
    dtype: str = DTYPE
    layout: Layout | None = Field(description="The order of its axes")
    channel_axis: int | None = Field(description="Which axis holds channels")
    batch_axis: int | None = Field(description="Which axis holds images; null where none does")
    channels: int | None = Field(description="How many channels it has")
    reduction: list[float] | None = Field(description="Input pixels a cell, [y, x]")
    receptive_field: ReceptiveFieldDescription = Field(description="Which input pixels a cell depends on")
    macs: int | None = Field(description="Multiply-accumulates of this layer")
    params: int = Field(description="Weights of this layer")
    cumulative_macs: int | None = Field(description="Multiply-accumulates of everything that it needs")
    bytes_per_image: int | None = Field(description="Of its map, bytes before anything is left out")
    stage: int | None = Field(description="Which stage it ends, from 0")
    feature: int | None = Field(description="Its number among the network's features, from 0")
    module: str | None = Field(
        description="Dotted path of the module that made it, as in PyTorch or Keras",
        examples=["layer3.5.conv2"],
    )
    has_variable_shape: bool = Field(description="Whether its unknown axes depend on the image's values")
    after_activation: bool = Field(description="Whether an activation made it or all it is made of")
    reads: list[str] = Field(description="The layers, or the input, that it was made from")


class LayerList(BaseModel):
    """The layers selected, in graph order: also the dry run of a request."""

    model: str = NAME
    version: str = VERSION
    digest: str = DIGEST
    layers: list[LayerDescription] = Field(description="In graph order")
    total_bytes: int | None = Field(description="Of all these layers for one image; null if one is unknown")
    total_macs: int | None = Field(description="Of everything that these layers need, counted once")


class LayerNumbers(BaseModel):
    """One layer's values, flat, row-major."""

    name: str = LAYER
    shape: list[int] = Field(description="Axes as in the graph, images along the batch axis")
    dtype: str = DTYPE
    data: list[float] = Field(description="Row-major, the last axis fastest")


class FeaturesAsJson(BaseModel):
    """Feature maps as numbers."""

    model: str = NAME
    version: str = VERSION
    layers: list[LayerNumbers] = Field(description="In graph order")
    left_out: dict[str, str] = LEFT_OUT


class VersionAnswer(BaseModel):
    """What runs here and what it allows."""

    service: str = Field(description="Name and version", examples=["featuremaps 0.1.0"])
    runtime: str = Field(description="What runs networks, with its version")
    settings: dict[str, Any] = Field(description="Limits and how networks are run, by the settings' names")


class Problem(BaseModel):
    """Every refusal (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="urn:featuremaps:problem:<code>")
    title: str = Field(description="What the code means", examples=["No such layer"])
    status: int = Field(description="The status of the answer", examples=[404])
    detail: str = Field(description="What was given, what is allowed, how to find out")
    instance: str = Field(description="The path that was asked")
    code: str = Field(description="Which refusal it is", examples=["layer-not-found"])
    request_id: str = Field(description="As in the header X-Request-Id")
    error: str = Field(description="The text of `detail`, which clients of the v2 protocol read")
    parameter: str | None = Field(None, description="Which parameter, field or part is meant")
    suggestions: list[str] | None = Field(None, description="What may have been meant instead")
    index: int | None = Field(None, description="Which of the images sent is meant, from 0")
    layer: str | None = Field(None, description="Which layer is meant")


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
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": model.outputs,
        "preprocessing": asdict(model.recipe) if model.recipe else None,
        "size_source": model.size_source,
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


def _layer(layer: Layer) -> Mapping[str, Any]:
    field = layer.receptive_field
    return {
        **{name: getattr(layer, name) for name in LayerDescription.model_fields},
        "reduction": _numbers(layer.reduction),
        "receptive_field": {
            "size": _numbers(field.size),
            "start": _numbers(field.start),
            "status": field.status,
        },
    }


def _numbers(pair: tuple[Fraction | float, Fraction | float] | None) -> list[float] | None:
    """Whole numbers as such, others as floats."""
    if pair is None:
        return None
    return [int(value) if value == int(value) else float(value) for value in pair]
