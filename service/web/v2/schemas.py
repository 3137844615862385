"""What the protocol's bodies hold, in pydantic."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.declarations import Declared, declare, schema_of
from service.output.classes import MOST_CLASSES
from service.parameters import Reduction

MOST_PARAMETERS = 64


def _few(given: Any) -> Any:
    """Counted before each is looked at: of a wrong one pydantic tells four times why."""
    if isinstance(given, dict) and len(given) > MOST_PARAMETERS:
        raise ValueError(f"{len(given)} parameters are more than {MOST_PARAMETERS}")
    return given


Parameters = Annotated[
    dict[str, bool | int | float | str],
    BeforeValidator(_few),
    Field(json_schema_extra={"maxProperties": MOST_PARAMETERS}),
]
RepositoryState = Literal["READY", "LOADING", "UNAVAILABLE"]
Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
    "BYTES",
]
MOST_INPUTS, MOST_OUTPUTS, MOST_AXES = 1024, 4096, 32
LONGEST_NAME = 1024


class IndexRequest(BaseModel):
    """What `v2_repository_index` takes."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = Field(False, description="Only what is ready")


class IndexRow(BaseModel):
    """One version of a model."""

    name: str = Field(description="The model")
    version: str = Field(description="Its version; empty for a model without any")
    state: RepositoryState = Field(description="Whether it can be asked")
    reason: str = Field(description="Why it cannot be asked; empty where it can")


class ChangeRequest(BaseModel):
    """What `v2_repository_load` and `v2_repository_unload` take."""

    model_config = ConfigDict(extra="forbid")

    parameters: Parameters = Field(
        default_factory=dict,
        description="`unload_dependents` is taken and changes nothing: no model here depends on another",
    )


@dataclass(frozen=True, kw_only=True)
class RequestParameters(Reduction):
    """What holds for the whole request."""

    binary_data_output: bool = declare(False, "Whether outputs are bytes behind the JSON")
    timeout: int = declare(0, "Deadline, microseconds; 0 is the operator's", ge=0)
    priority: Any = declare(None, "Taken, changes nothing")


@dataclass(frozen=True, kw_only=True)
class OutputParameters(Reduction):
    """What holds for one output."""

    binary_data: bool | None = declare(None, "As `binary_data_output`, for this output")
    classification: int = declare(
        0, "How many of the highest values, as text; 0 is all values", ge=0, le=MOST_CLASSES
    )


def _described(kind: type[Declared]) -> str:
    return "; ".join(f"`{name}`: {told['description']}" for name, told in schema_of(kind).items())


class InputTensor(BaseModel):
    """One input: its numbers or texts as `data`, or their bytes behind the JSON."""

    name: str = Field(
        max_length=LONGEST_NAME, description="The input's name in the graph", examples=["image"]
    )
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        max_length=MOST_AXES, fail_fast=True, description="Axes of the tensor", examples=[[1, 3, 32, 32]]
    )
    datatype: Datatype = Field(description="Type of the values")
    parameters: Parameters = Field(
        default_factory=dict, description="`binary_data_size`: how many of the bytes behind the JSON are its"
    )
    data: Any = Field(None, description="Flat or nested, row-major; BYTES are texts")


class RequestedOutput(BaseModel):
    """One output: a declared one, or any layer by its exact name."""

    name: str = Field(max_length=LONGEST_NAME, description="The exact name", examples=["stage1.block2.relu"])
    parameters: Parameters = Field(
        default_factory=dict,
        description=f"For this output: {_described(OutputParameters)}",
    )


class InferenceRequest(BaseModel):
    """What `v2_infer` takes; members that are not listed are passed over, parameters are not."""

    id: str | None = Field(None, max_length=LONGEST_NAME, description="Comes back in the answer")
    parameters: Parameters = Field(
        default_factory=dict,
        description=f"For all outputs: {_described(RequestParameters)}",
    )
    inputs: list[InputTensor] = Field(
        min_length=1,
        max_length=MOST_INPUTS,
        fail_fast=True,
        description="All inputs that the manifest has no constants for",
    )
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=MOST_OUTPUTS, fail_fast=True, description="Without it the declared outputs"
    )


class OutputTensor(BaseModel):
    """One output of an answer: `data`, or `binary_data_size` bytes behind the JSON."""

    name: str = Field(description="The layer, or what stands beside it: `<layer>#scale`")
    datatype: Datatype = Field(description="Type of the values")
    shape: list[int] = Field(description="Axes of the tensor, batch axis included")
    parameters: Parameters = Field(
        default_factory=dict, description="`binary_data_size`: how many of the bytes behind the JSON are its"
    )
    data: list[Any] = Field(default_factory=list, description="Flat, row-major, where no bytes are its")


class InferenceResponse(BaseModel):
    """What `v2_infer` answers."""

    model_name: str = Field(description="The model that answered")
    model_version: str = Field(description="Its version")
    id: str = Field("", description="The request's, where it had one")
    outputs: list[OutputTensor] = Field(description="In the order that they were asked for")


class Live(BaseModel):
    """The process answers."""

    live: bool = Field(description="true")


class Ready(BaseModel):
    """Requests can be sent."""

    ready: bool = Field(description="true")
    name: str = Field("", description="The model, where one was asked for")


class ServerMetadata(BaseModel):
    """Who answers, and which extensions of the protocol it has."""

    name: str = Field(description="featuremaps")
    version: str = Field(description="Of the service")
    extensions: list[str] = Field(description="Parts of the protocol beyond its core that are there")


class ModelNames(BaseModel):
    """The models that there are."""

    models: list[str] = Field(description="Names")


class TensorMetadata(BaseModel):
    """One input or declared output; -1 is an axis of any length."""

    name: str = Field(description="The tensor's name in the graph")
    datatype: str = Field(description="Type of its values")
    shape: list[int] = Field(description="Axes, batch axis included")


class ModelMetadata(BaseModel):
    """What a model takes and declares; every layer of `list_layers` is an output too."""

    name: str = Field(description="The model")
    versions: list[str] = Field(description="Those in the repository, lowest first")
    platform: str = Field(description="onnxruntime_onnx")
    inputs: list[TensorMetadata] = Field(description="All inputs, those with constants too")
    outputs: list[TensorMetadata] = Field(description="Declared outputs that are tensors")


class TensorConfiguration(BaseModel):
    """As Triton's model configuration has it; `dims` are without the batch axis where the model has one."""

    name: str = Field(description="The tensor's name in the graph")
    data_type: str = Field(description="`TYPE_` and the datatype; texts are TYPE_STRING")
    dims: list[int] = Field(description="Axes; -1 is one of any length")
    optional: bool = Field(False, description="An input that the manifest has a constant for")


class ModelConfiguration(BaseModel):
    """What load generators ask for; `max_batch_size` 0 is a model without a batch axis of any length."""

    name: str = Field(description="The model")
    platform: str = Field(description="onnxruntime_onnx")
    backend: str = Field(description="onnxruntime")
    max_batch_size: int = Field(description="Images in one request")
    input: list[TensorConfiguration] = Field(description="All inputs")
    output: list[TensorConfiguration] = Field(description="Declared outputs")


class Duration(BaseModel):
    """How often, and how long all together."""

    count: int = Field(description="How often")
    ns: int = Field(description="Nanoseconds of all together")


class BatchStatistics(BaseModel):
    """Runs of so many images together."""

    batch_size: int = Field(description="Images")
    compute_input: Duration = Field(description="Decoding and preprocessing")
    compute_infer: Duration = Field(description="The network")
    compute_output: Duration = Field(description="Reducing, encoding, compressing")


class ModelStatistics(BaseModel):
    """Counted since the process began, whatever interface was asked."""

    name: str = Field(description="The model")
    version: str = Field(description="Its version")
    last_inference: int = Field(description="Milliseconds since 1970, 0 before the first")
    inference_count: int = Field(description="Images answered")
    execution_count: int = Field(description="Runs of the network")
    inference_stats: dict[str, Duration] = Field(
        description="`success` and `fail` of requests; `queue`, `compute_input`, `compute_infer` and "
        "`compute_output` of runs"
    )
    batch_stats: list[BatchStatistics] = Field(description="Runs by how many images ran together")
    memory_usage: list[Any] = Field(description="Not told by model: empty")


class StatisticsAnswer(BaseModel):
    """Of each version that was loaded."""

    model_stats: list[ModelStatistics] = Field(description="One a version")
