"""Loading a model: read, checked, compiled and run once, at the size that it is served at."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from service.engine.graph import Graph, read
from service.engine.image_input import at_size, candidate_sizes
from service.engine.loaded import LoadedModel
from service.engine.model_files import ModelFiles, read_files
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.engine.runtime_errors import is_of_memory
from service.errors import ModelFailed

FIXED_BATCH = (
    "this file fixes its batch to {}, and its images change each other's outputs: export it with a batch of "
    "one or with a free one; or use /v2"
)
SIZE_UNKNOWN = (
    "the file fixes no size, and the network runs at none of those tried ({}): set size under [input] in a "
    "model.toml; or use /v2. The first reason: {}"
)
log = logging.getLogger("featuremaps.models")


def load(
    name: str,
    version: str,
    file: Path,
    folder: Path,
    runtime: Runtime,
    plans: PlanCache,
    read: Callable[[Path], Graph] = read,
) -> LoadedModel:
    """Read, check, compile and run a model once.

    Where nothing fixes the size of its images, the first that the network runs at is served.

    Raises:
        ModelFailed: with the reason.
    """
    files = read_files(file, folder, read)
    failure: ModelFailed | None = None
    for size in candidate_sizes(files.image):
        image = at_size(files.image, size) if files.image and size else files.image
        try:
            model = LoadedModel(name, version, files, image, runtime, plans)
            model.warm()
        except ModelFailed as error:
            if not error.at_run or is_of_memory(error):
                raise
            failure = failure or error
            continue
        if model.mixes_images():
            reason = FIXED_BATCH.format(model.group)
            return LoadedModel(name, version, replace(files, no_image_reason=reason), None, runtime, plans)
        if size:
            log.info("model %s version %s: served at the guessed size %dx%d", name, version, *size)
        return model
    assert failure is not None
    try:
        return _without_image(name, version, files, failure, runtime, plans)
    except ModelFailed as error:
        raise failure from error


def _without_image(
    name: str, version: str, files: ModelFiles, failure: ModelFailed, runtime: Runtime, plans: PlanCache
) -> LoadedModel:
    """A network that runs at none of the guessed sizes: for tensors, until the manifest names its size.

    Raises:
        ModelFailed: it does not compile either.
    """
    tried = ", ".join(f"{h}x{w}" for h, w in filter(None, candidate_sizes(files.image)))
    if not tried:
        raise failure
    reason = SIZE_UNKNOWN.format(tried, failure.detail)
    log.info("model %s version %s takes no images: %s", name, version, reason)
    model = LoadedModel(name, version, replace(files, no_image_reason=reason), None, runtime, plans)
    model.warm()
    return model
