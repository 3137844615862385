"""What the protocol's bodies hold, in pydantic."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, Any]


class IndexRequest(BaseModel):
    """What `v2_repository_index` takes."""

    model_config = ConfigDict(extra="forbid")

    ready: bool = Field(False, description="Only what is ready")


class IndexRow(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class ChangeRequest(BaseModel):
    """What `v2_repository_load` and `v2_repository_unload` take."""

    model_config = ConfigDict(extra="forbid")

    parameters: Parameters = Field(
        default_factory=dict,
        description="`unload_dependents` is taken and changes nothing: no model here depends on another",
    )
