"""Running a network on images: one by one, or on a device in batches where these give the same."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from service.engine.batching import Asked, run_together
from service.engine.execution import Examples, Execution
from service.engine.runner import Stop
from service.values import Array, TensorSpec

Maps = Mapping[str, Array]


class Images:
    """Images of one model; `examples` gives two of a shape (C, H, W) or (H, W, C)."""

    def __init__(self, execution: Execution, examples: Callable[[tuple[int, ...]], Examples]) -> None:
        self._execution = execution
        self._device = execution.device
        self._examples = examples

    def run(self, asked: Asked, stop: Stop | None) -> Maps:
        """The maps of all images of one request, along the batch axis.

        On a CPU a batch was measured to cost as much as its images alone or more, and holds all their maps.

        Raises:
            ModelFailed: the runtime could not.
            Stopped: `stop` was set meanwhile.
        """
        most = 1
        # Examples are tried with the manifest's constants.
        may_share = asked.images > 1 and self._device.is_apart and not asked.others
        if may_share and self.is_separable(asked, stop):
            most = self._device.batch_images(asked.tensor.shape)
        if asked.images <= most:
            return self._run_piece(asked, stop)
        made = [self._run_piece(_cut(asked, start, most), stop) for start in range(0, asked.images, most)]
        return {name: np.concatenate([maps[name] for maps in made]) for name in asked.names}

    def is_separable(self, asked: Asked, stop: Stop | None) -> bool:
        """Whether a batch gives what its images give alone.

        Raises:
            Stopped: `stop` was set meanwhile.
        """
        shape = asked.tensor.shape[1:]
        return self._execution.is_separable(asked.names, shape, partial(self._examples, shape), stop)

    def _run_piece(self, asked: Asked, stop: Stop | None) -> Maps:
        if asked.images > 1:
            self._device.call(run_together, self._execution, [asked], stop)
            if asked.error:
                raise asked.error
            return asked.found
        found = dict(self._execution.run(asked.values, asked.names, stop=stop, stay=asked.parts.keys()))
        for layer in asked.layers:
            if (part := asked.parts.get(layer.name)) is not None:
                found[layer.name] = self._device.reduce(found[layer.name], layer, part)
        return found


def _cut(asked: Asked, start: int, images: int) -> Asked:
    """Some of a request's images."""
    end = start + images
    some = {name: asked.values[name][start:end] for name in {asked.carrier, *asked.rows}}
    return replace(asked, values={**asked.values, **some}, images=len(some[asked.carrier]), found={})


def one_a_row(inputs: Iterable[TensorSpec], others: Mapping[str, Array], images: int) -> frozenset[str]:
    """Those further inputs that hold a row for each of several images: of a free first side, and so long."""
    if images < 2 or not others:
        return frozenset()
    free = {spec.name for spec in inputs if spec.shape and spec.shape[0] is None}
    return frozenset(name for name, value in others.items() if name in free and len(value) == images)
