"""What an operator may set: names, defaults, bounds, units. Only `app` and the command read it.

Every setting has one name: `--some-name`, `FEATUREMAPS_SOME_NAME`, `some_name` in the TOML file, in
that order of precedence. A name that does not exist is an error.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.errors import ConfigurationError

PREFIX = "FEATUREMAPS_"
CONFIG_VARIABLE = PREFIX + "CONFIG"
# The token that a client sends, as the page's programs do; it may be set where the service starts.
KEY_VARIABLE = PREFIX + "KEY"
# Kubernetes puts FEATUREMAPS_REDIS_SERVICE_HOST, FEATUREMAPS_REDIS_PORT_6379_TCP and the like into every
# pod beside a Service called featuremaps-redis, and FEATUREMAPS_REDIS_PORT=tcp://10.0.0.1:6379.
SERVICE_LINK = re.compile(
    PREFIX + r"([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.*)?)"
)
LINKED_PORT = re.compile(PREFIX + r"([A-Z0-9_]+_)?PORT")
MIB = 1 << 20


def _words(value: Any) -> Any:
    return tuple(word for word in re.split(r"[\s,]+", value) if word) if isinstance(value, str) else value


def _split(value: Any) -> Any:
    # What is empty would mean the working directory.
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


class Settings(BaseModel):
    """Everything that can be set; the descriptions are the command's help."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[Path, ...], BeforeValidator(_split)] = Field(
        (),
        description="Model repositories or .onnx files; without it ./models, else the bundled one",
    )
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one")
    load: Literal["eager", "lazy"] = Field(
        "eager", description="Load models at start, or each when it is first asked for"
    )
    graph_optimization: Literal["all", "off"] = Field(
        "all",
        description="onnxruntime's graph optimisation; off gives the uncut graph's values exactly",
    )
    provider: Literal["cpu", "cuda", "auto"] = Field("cpu", description="Execution provider")
    provider_fallback: bool = Field(False, description="Run on the CPU where provider cuda is not to be had")
    tf32: bool = Field(
        False,
        description="Let CUDA round what convolutions multiply to TF32: twice as fast, exact to 0.002 "
        "of a layer's largest value",
    )
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Worker processes; they divide threads, places, bytes and rates among them",
    )
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads of each stage of a request, and one more that decodes; 0 is one a core",
    )
    network_threads: int = Field(
        1,
        ge=1,
        le=256,
        description="Threads that runs of networks share beside their own: 1 gives most answers a second, "
        "one a core gives a single caller the soonest",
    )
    batching: Literal["auto", "on", "off"] = Field(
        "auto", description="Whether requests that wait share batches; auto does so on a GPU only"
    )
    max_batch_pixels: int = Field(4_000_000, ge=1, description="Most pixels of a shared batch")
    plan_cache_bytes: int = Field(
        0,
        ge=0,
        description="Bytes of compiled parts of all models together; 0 is 1 GiB on a CPU and 4 GiB on a GPU, "
        "where each size of a batch has its own",
    )
    image_store: str = Field(
        "",
        description="Where kept images lie: a path, or redis:// where replicas share them; "
        "without it a file in the user's cache folder",
    )
    image_store_bytes: int = Field(1024 * MIB, ge=1, description="Kept images together, bytes")
    image_max_age_s: float = Field(
        24 * 3600.0, gt=0, allow_inf_nan=False, description="How long an image is kept, seconds"
    )
    map_cache_bytes: int = Field(
        256 * MIB, ge=0, description="Decoded pictures and maps of kept images that are held, bytes"
    )
    max_in_flight: int = Field(256, ge=1, description="Requests worked on or waiting at one time")
    max_in_flight_bytes: int = Field(
        2048 * MIB, ge=1, description="Bodies, pictures, maps and answers of all requests together, bytes"
    )
    max_stall_s: float = Field(
        30.0,
        gt=0,
        allow_inf_nan=False,
        description="How long a client may take less than 1 MiB of an answer, or send less than 16 KiB of a "
        "body, seconds",
    )
    max_body_bytes: int = Field(32 * MIB, ge=1, description="Largest request body, bytes")
    max_pixels: int = Field(50_000_000, ge=1, description="Largest image, pixels")
    max_images: int = Field(16, ge=1, le=1024, description="Most images in one request")
    max_answer_bytes: int = Field(64 * MIB, ge=1, description="Largest answer, bytes before coding")
    max_json_answer_bytes: int = Field(2 * MIB, ge=1, description="Largest answer as JSON, bytes")
    max_map_bytes: int = Field(
        512 * MIB, ge=1, description="Largest maps of one request before anything is left out, bytes"
    )
    max_size_pixels: int = Field(4_000_000, ge=1, description="Largest input fed to a network, pixels")
    max_timeout_s: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Longest deadline of a request, seconds"
    )
    max_model_bytes: int = Field(2048 * MIB, ge=1, description="Largest model, external data included, bytes")
    max_model_nodes: int = Field(
        100_000, ge=1, description="Most nodes of a model's graph, and most tensors stored in it"
    )
    check_models: Literal["auto", "always", "off"] = Field(
        "auto",
        description="Which models a process of its own loads first: auto leaves out those installed with "
        "the program",
    )
    check_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Longest check of a model, seconds of CPU time"
    )
    check_memory_bytes: int = Field(
        4096 * MIB, ge=64 * MIB, description="Most memory that the check of a model takes, bytes"
    )
    keys: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="Keys of callers as `featuremaps key` prints them: name:scope:sha256"
    )
    keys_file: str = Field("", description="File of such keys, one a line; it is read anew when it changes")
    allow_anonymous: bool = Field(
        False, description="Whether to serve without keys where others than this machine can connect"
    )
    rate_limit: str = Field(
        "", description="Requests of each key, or without keys of each address, such as 100/minute"
    )
    rate_limit_store: str = Field(
        "",
        description="Redis in which replicas count together; without it image_store where that is one, "
        "else each counts alone",
    )
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="Addresses or networks of proxies whose X-Forwarded-For is believed"
    )
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="Origins whose pages may ask, such as https://example.org, or *"
    )
    allow_admin: bool = Field(
        False, description="Whether keys of scope admin may load, unload and upload models over HTTP"
    )
    drain_grace_s: float = Field(
        5.0,
        ge=0,
        allow_inf_nan=False,
        description="How long connections are still taken after SIGTERM, while readiness says 503, seconds",
    )
    trace_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Where OpenTelemetry traces are sent by OTLP/HTTP, such as http://collector:4318/v1/traces",
    )
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for programs")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level")


def read_settings(options: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """Put options, environment and TOML file together, the first that names a setting wins.

    Raises:
        ConfigurationError: an unknown name or a wrong value, in one line.
    """
    given = {name: value for name, value in options.items() if value is not None}
    config = given.pop("config", None) or environ.get(CONFIG_VARIABLE)
    merged = {**_from_file(config), **_from_environment(environ), **given}
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"setting {first['loc'][0]}: {first['msg']}") from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    # Misspelt KEYS would let everybody in without a word.
    if ":" in environ.get(KEY_VARIABLE, ""):
        raise ConfigurationError(f"{KEY_VARIABLE} is what a client sends; {PREFIX}KEYS are those let in")
    values = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in (CONFIG_VARIABLE, KEY_VARIABLE):
            continue
        if _is_service_link(variable, environ[variable]):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in Settings.model_fields:
            raise ConfigurationError(f"{variable} is no setting; `featuremaps serve --help` shows all")
        values[name] = environ[variable]
    return values


def service_links(environ: Mapping[str, str]) -> list[str]:
    """Variables that are Kubernetes' and no settings: they are passed over."""
    return sorted(variable for variable, value in environ.items() if _is_service_link(variable, value))


def _is_service_link(variable: str, value: str) -> bool:
    is_port = LINKED_PORT.fullmatch(variable) is not None and "://" in value
    return is_port or SERVICE_LINK.fullmatch(variable) is not None


def _from_file(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read as TOML") from error
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigurationError(f"{path}: {name} is no setting; `featuremaps serve --help` shows all")
    return values
