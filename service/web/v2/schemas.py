"""What the protocol's bodies hold, in pydantic."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Parameters = dict[str, Any]
RepositoryState = Literal["READY", "LOADING", "UNAVAILABLE"]


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
