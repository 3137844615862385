"""Puts the rooms together: the only composition root, and the only reader of settings."""

import functools
import ipaddress
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI

from service.engine.catalog import Catalog
from service.engine.extent import ModelLimits
from service.engine.graph import read
from service.engine.inspector import Inspector
from service.engine.loaded import LoadedModel
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.errors import ConfigurationError
from service.intake.store import open_store
from service.pipeline.admission import Admission
from service.pipeline.work import Pipeline
from service.settings import Settings
from service.values import Limits
from service.web.access import Guard, is_loopback
from service.web.application import build
from service.web.context import Observer
from service.web.keys import KeyRing
from service.web.rates import Rates

BUNDLED_MODEL = Path("cifar-resnet", "1", "model.onnx")
BUNDLED = (Path(__file__).parent / "bundled_models", Path(__file__).parent.parent / "models")


def make_pipeline(settings: Settings, workers: int = 1) -> Pipeline:
    """Everything behind the door: what the service and the command share.

    Each of several workers has its share of threads, places and bytes; kept images are shared anyway.

    Raises:
        ConfigurationError: the settings or the installation do not allow it.
    """
    runtime = Runtime(
        provider=settings.provider,
        fallback=settings.provider_fallback,
        optimization=settings.graph_optimization,
        threads=settings.network_threads,
        tf32=settings.tf32,
        batch_pixels=settings.max_batch_pixels,
    )
    plans = _plan_cache(settings, runtime, workers)
    threads = max(1, (settings.threads or len(os.sched_getaffinity(0))) // workers)
    limits = model_limits_of(settings)
    inspector = Inspector(limits, runtime.optimization)

    def load_model(name: str, version: str, file: Path, folder: Path) -> LoadedModel:
        digest = inspector.check(name, version, file, folder) if _is_checked(file, settings) else None
        reading = functools.partial(read, limits=limits, digest=digest)
        return load(name, version, file, folder, runtime, plans, reading)

    return Pipeline(
        Catalog(model_paths(settings), load_model),
        limits_of(settings),
        open_store(
            settings.image_store or str(default_store()),
            max_bytes=settings.image_store_bytes,
            max_age_s=settings.image_max_age_s,
        ),
        Admission(max(1, settings.max_in_flight // workers), max(1, settings.max_in_flight_bytes // workers)),
        runtime=f"onnxruntime {runtime.version}",
        give_back=runtime.give_back,
        threads=threads,
        runs_at_once=1 if runtime.has_device else threads,
        map_cache_bytes=settings.map_cache_bytes // workers,
        max_batch_pixels=settings.max_batch_pixels if _batches(settings, runtime) else 0,
        plans=plans,
        inspector=inspector,
        upload_paths=_upload_paths(settings),
    )


def _plan_cache(settings: Settings, runtime: Runtime, workers: int) -> PlanCache:
    """On a GPU with more room, for variants too: there is one a size of a batch, which none may push out."""
    if runtime.provider == "cuda":
        return PlanCache((settings.plan_cache_bytes or 4 << 30) // workers, variants_share=4)
    return PlanCache((settings.plan_cache_bytes or 1 << 30) // workers)


def _is_checked(file: Path, settings: Settings) -> bool:
    """What is installed with the program is as trustworthy as the program."""
    if settings.check_models == "auto":
        return file.resolve() not in {(folder / BUNDLED_MODEL).resolve() for folder in BUNDLED}
    return settings.check_models == "always"


def _batches(settings: Settings, runtime: Runtime) -> bool:
    """On a GPU batches fill the chip; on a CPU they were measured to cost 1.06 to 1.45 times single runs."""
    return settings.batching == "on" or (settings.batching == "auto" and runtime.provider == "cuda")


def make_app(settings: Settings) -> FastAPI:
    """The whole service as an ASGI application; one of several workers has its share of the budgets."""
    return build(
        make_pipeline(settings, settings.workers),
        eager=settings.load == "eager",
        settings=shown(settings),
        guard=guard_of(settings, settings.workers),
        observers=[open_traces(settings.trace_endpoint)] if settings.trace_endpoint else [],
    )


def open_traces(endpoint: str) -> Observer:
    """Who sends traces to an endpoint.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    try:
        from service.web.traces import Traces
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        missing = "trace_endpoint needs OpenTelemetry: pip install 'featuremaps[tracing]'"
        raise ConfigurationError(missing) from error
    return Traces(endpoint)


def guard_of(settings: Settings, workers: int = 1) -> Guard:
    """What is asked of callers.

    Raises:
        ConfigurationError: one of the settings is ill-formed, or there are no keys and others than this
            machine can connect.
    """
    has_keys = bool(settings.keys or settings.keys_file)
    if not (has_keys or settings.allow_anonymous or is_loopback(settings.host)):
        raise ConfigurationError(
            f"listening on {settings.host} without keys lets in everybody who reaches it: give keys "
            "(`featuremaps key NAME` makes one), or set allow_anonymous"
        )
    if settings.allow_admin and not has_keys:
        # A proxy on this machine makes everybody look like a program of this machine.
        raise ConfigurationError("allow_admin needs keys: `featuremaps key NAME --scope admin` makes one")
    if settings.allow_admin and workers > 1:
        raise ConfigurationError("allow_admin changes the models of one process: it needs workers = 1")
    shared = settings.image_store if settings.image_store.startswith(("redis://", "rediss://")) else ""
    store = settings.rate_limit_store or shared
    file = Path(settings.keys_file) if settings.keys_file else None
    return Guard(
        keys=KeyRing(settings.keys, file) if has_keys else None,
        rates=Rates(settings.rate_limit, store, workers) if settings.rate_limit else None,
        allow_admin=settings.allow_admin,
        cors_origins=settings.cors_origins,
        trusted_proxies=_networks(settings.trusted_proxies),
    )


def _networks(addresses: Sequence[str]) -> Sequence[str]:
    """Each network, and that of IPv4 also as a socket of both families tells it: ::ffff:10.0.0.0/104."""
    found: list[str] = []
    for address in addresses:
        try:
            network = ipaddress.ip_network(address)
        except ValueError as error:
            raise ConfigurationError(f"trusted_proxies: {address!r} is no address and no network") from error
        found.append(str(network))
        if network.version == 4:
            found.append(f"::ffff:{network.network_address}/{96 + network.prefixlen}")
    return found


def _upload_paths(settings: Settings) -> Sequence[Path]:
    """The operator's own; nothing is written into the program."""
    paths = model_paths(settings)
    return () if set(paths) & set(BUNDLED) else paths


def model_paths(settings: Settings) -> tuple[Path, ...]:
    """The paths given, else ./models, else the models installed with the package."""
    if settings.models:
        return settings.models
    return next(((path,) for path in (Path("models"), *BUNDLED) if path.is_dir()), ())


def default_store() -> Path:
    """A file in the user's cache folder (XDG Base Directory), else where temporary files go."""
    cache = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache" if _has_home() else None)
    return Path(cache or tempfile.gettempdir()) / "featuremaps" / "images.sqlite3"


def _has_home() -> bool:
    try:
        return os.access(Path.home(), os.W_OK)
    except RuntimeError:
        return False


def limits_of(settings: Settings) -> Limits:
    """The bounds of one request."""
    return Limits(
        body_bytes=settings.max_body_bytes,
        pixels=settings.max_pixels,
        images=settings.max_images,
        answer_bytes=settings.max_answer_bytes,
        json_answer_bytes=settings.max_json_answer_bytes,
        map_bytes=settings.max_map_bytes,
        size_pixels=settings.max_size_pixels,
        timeout_s=settings.max_timeout_s,
        stall_s=settings.max_stall_s,
    )


def model_limits_of(settings: Settings) -> ModelLimits:
    """The bounds of one model."""
    return ModelLimits(
        model_bytes=settings.max_model_bytes,
        model_nodes=settings.max_model_nodes,
        check_seconds=settings.check_seconds,
        check_memory_bytes=settings.check_memory_bytes,
    )


def shown(settings: Settings) -> Mapping[str, object]:
    """The settings that `get_version` shows: what a client can run into, nothing of the machine."""
    names = [name for name in Settings.model_fields if name.startswith("max_")]
    return {name: getattr(settings, name) for name in (*names, "graph_optimization", "provider")}
