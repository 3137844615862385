"""Several requests for different layers of one network share a batch of the part that they have in common.

Each asks for its own layers, so each has its own plan; a step that stands in several plans is run once,
on the images of all of them. One request failing harms none of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from service.engine.execution import Execution, Values
from service.engine.runner import Stop
from service.errors import ModelFailed, ShapeMismatch
from service.values import Array, Layer, Step


@dataclass(eq=False)
class Asked:
    """One request: its inputs for `images` images, its layers; `found` grows step by step."""

    values: Values
    layers: tuple[str, ...]
    images: int
    found: dict[str, Array] = field(default_factory=dict)
    error: Exception | None = None


def run_together(execution: Execution, requests: Sequence[Asked], stop: Stop | None = None) -> None:
    """Compute every request's layers; each gets its `found` or its `error`.

    All of them have to be separable, with images of one shape.

    Raises:
        Stopped: `stop` was set meanwhile.
    """
    plans = [execution.plan(request.layers).steps for request in requests]
    for request in requests:
        request.found = dict(request.values)
    for step in execution.in_order({step for steps in plans for step in steps}):
        sharing = [r for r, steps in zip(requests, plans, strict=True) if step in steps and r.error is None]
        if len(sharing) > 1 and execution.hands_over_maps(step):
            _run_shared(execution, step, sharing, stop)
        else:
            _run_each(execution, step, sharing, stop)


def _run_shared(execution: Execution, step: Step, requests: Sequence[Asked], stop: Stop | None) -> None:
    images = [request.images for request in requests]
    reads = {name: _stacked([request.found[name] for request in requests]) for name in step.reads}
    try:
        made = execution.run_step(step, reads, batch=sum(images), stop=stop)
    except ModelFailed:
        _run_each(execution, step, requests, stop)
        return
    for request, rows in zip(requests, _rows(images), strict=True):
        request.found |= {name: value[rows] for name, value in made.items()}


def _run_each(execution: Execution, step: Step, requests: Sequence[Asked], stop: Stop | None) -> None:
    for request in requests:
        try:
            request.found |= execution.run_step(step, request.found, batch=request.images, stop=stop)
        except ModelFailed as error:
            request.error = error


def _stacked(values: Sequence[Array]) -> Array:
    """Along the batch axis; a constant input is the same array for all."""
    first = values[0]
    return first if all(value is first for value in values) else np.concatenate(values)


def _rows(images: Sequence[int]) -> Sequence[slice]:
    ends = np.cumsum(images)
    return [slice(int(end) - count, int(end)) for end, count in zip(ends, images, strict=True)]


def check_batch(images: int, layers: Sequence[Layer]) -> None:
    """Refuse several images where the maps of a layer cannot be laid side by side.

    Raises:
        ShapeMismatch
    """
    if (layer := without_batch(images, layers)) is not None:
        raise ShapeMismatch(
            f"{images} images were sent, but layer {layer.name!r} has no batch axis to lay "
            "their maps along: ask for it with one image",
            limit=1,
            actual=images,
        )


def without_batch(images: int, layers: Sequence[Layer]) -> Layer | None:
    """A layer that so many images cannot be asked for at once."""
    return next((x for x in layers if x.batch_axis is None), None) if images > 1 else None
