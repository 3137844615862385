"""Running a network on images: one by one, in batches on a device, or in groups that a file fixes."""

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from cachetools import LRUCache, cached

from service.engine.batching import Asked, run_together
from service.engine.execution import Examples, Execution
from service.engine.runner import Stop
from service.errors import ShapeMismatch
from service.values import Array, TensorSpec

Maps = Mapping[str, Array]
CHECKS_KEPT = 256


class Images:
    """Images of one model; `examples` gives two of a shape (C, H, W) or (H, W, C).

    Where the file fixes its batch to a `group` of several, so many run together, padded with copies of the
    last; that is done only where the images of a group do not change each other's maps.
    """

    def __init__(
        self,
        execution: Execution,
        examples: Callable[[tuple[int, ...]], Examples],
        carrier: str,
        group: int,
    ) -> None:
        """`carrier` is the input that takes the images."""
        self._execution = execution
        self._carrier = carrier
        self._device = execution.device
        self._examples = examples
        self._group = group
        self._independent = cached(LRUCache[Hashable, bool](CHECKS_KEPT), condition=threading.Condition())(
            self._are_independent
        )

    def run(self, asked: Asked, stop: Stop | None) -> Maps:
        """The maps of all images of one request, along the batch axis.

        On a CPU a batch was measured to cost as much as its images alone or more, and holds all their maps.

        Raises:
            ModelFailed: the runtime could not.
            ShapeMismatch: the file fixes its batch, and these layers' maps depend on all of it.
            Stopped: `stop` was set meanwhile.
        """
        if self._group > 1:
            return self._run_groups(asked, stop)
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
        if self._group > 1:
            return False
        shape = asked.tensor.shape[1:]
        return self._execution.is_separable(asked.names, shape, partial(self._examples, shape), stop)

    def are_independent(self, names: tuple[str, ...], shape: tuple[int, ...]) -> bool:
        """Whether the images of a group, of a shape (C, H, W) or (H, W, C), leave each other's maps alone.

        Raises:
            ModelFailed: the network does not run on them.
        """
        return self._group == 1 or self._independent(names, shape)

    def _run_groups(self, asked: Asked, stop: Stop | None) -> Maps:
        if not self.are_independent(asked.names, asked.tensor.shape[1:]):
            raise ShapeMismatch(
                f"this file fixes its batch to {self._group}, and among the layers asked for are some whose "
                "maps depend on all images of it: export it with a batch of one or with a free one",
                limit=self._group,
            )
        made = [self._run_group(asked, start, stop) for start in range(0, asked.images, self._group)]
        return {name: np.concatenate([maps[name] for maps in made]) for name in asked.names}

    def _run_group(self, asked: Asked, start: int, stop: Stop | None) -> Maps:
        """Some images of a request, padded to the group's size; the padding's maps are dropped."""
        images = asked.tensor[start : start + self._group]
        padding = np.repeat(images[-1:], self._group - len(images), axis=0)
        values = {**asked.values, asked.carrier: np.concatenate([images, padding])}
        maps = self._execution.run(values, asked.names, stop=stop)
        return {name: maps[name][: len(images)] for name in asked.names}

    def _are_independent(self, names: tuple[str, ...], shape: tuple[int, ...]) -> bool:
        """Try two groups that have only their first image in common."""
        if not self._execution.decided_together.isdisjoint(names):
            return False
        (first, second), _ = self._examples(shape)
        made, carrier = [], self._carrier
        for other in (first, second):
            images = [first[carrier], *[other[carrier]] * (self._group - 1)]
            made.append(self._execution.run_exact({**first, carrier: np.concatenate(images)}, names))
        return all(_same_first(made[0][name], made[1][name], self._group) for name in names)

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


def _same_first(one: Array, other: Array, group: int) -> bool:
    """Whether both hold a row for each image, and the first rows are equal."""
    if one.ndim < 2 or len(one) != group:
        return False
    return np.array_equal(one[0], other[0], equal_nan=one.dtype.kind == "f")


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
