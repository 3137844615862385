"""What is done to values where they lie: on a GPU copying a map takes longer than averaging it there.

Measured on an H200, eight maps of (64, 56, 56) float32: 0.05 ms to average them there, 0.43 to copy them
and 0.82 to average them with numpy.
"""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from cachetools import LRUCache, cached

from service.engine.protos import element_type
from service.engine.runner import Runtime, Session, Value
from service.engine.small_graphs import select_and_average, take_rows
from service.parameters import NO_REDUCTION, Reduction
from service.syntax import Channels
from service.values import Array, Layer

T = TypeVar("T")
SESSIONS_KEPT = 64
# cuDNN plans a convolution anew for each shape: ResNet-50 takes 80 ms for that, and 2.5 ms for a batch of 8.
BATCH_STEP = 4


class Device:
    """Rows and reductions of values that a runtime left on its device, or of arrays where it has none."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._session = cached(LRUCache[Hashable, Session](SESSIONS_KEPT), condition=threading.Condition())(
            self._compile
        )

    def call(self, work: Callable[..., T], *given: Any) -> T:
        """Call what runs many sessions in the thread that runs each, which saves going there for each."""
        return self._runtime.on_device(work, *given)

    @property
    def is_apart(self) -> bool:
        """Whether values lie elsewhere than where numpy looks for them."""
        return self._runtime.has_device

    def shapes(self, values: Mapping[str, Value]) -> Hashable:
        """The shapes of these values where sessions depend on them."""
        if not self.is_apart:
            return ()
        return tuple(tuple(v.shape if isinstance(v, np.ndarray) else v.shape()) for v in values.values())

    def batch_images(self, shape: Sequence[int]) -> int:
        """How many images of a tensor's shape (N, C, H, W) or (N, H, W, C) one batch takes."""
        return self._runtime.batch_images(shape) if self.is_apart else 1

    def padded(self, images: int, shape: Sequence[int]) -> int:
        """The size of the batch that so many images of a shape are run in.

        Of few sizes only: 1, 4, 16, 64 and so on, and the most that a batch takes.
        """
        size = 1
        while self.is_apart and size < images:
            size *= BATCH_STEP
        return max(images, min(size, self.batch_images(shape)))

    def take(self, value: Value, rows: Sequence[int]) -> Value:
        """These rows of a value (N, ...), left where it lies."""
        if isinstance(value, np.ndarray):
            return value[rows]
        session = self._session(take_rows, value.element_type())
        feeds = {"value": value, "rows": np.asarray(rows, np.int64)}
        return session.run(feeds, stay={"taken"})["taken"]

    def reduce(self, value: Value, layer: Layer, part: Reduction) -> Array:
        """A map after the part of a reduction that `part_of` found; batch axis included."""
        axes = layer.spatial_axes if part.pool == "avg" else ()
        selecting = layer.channel_axis if part.channels else None
        session = self._session(select_and_average, element_type(layer.dtype), selecting, axes)
        feeds = {"map": value}
        if part.channels:
            feeds["channels"] = np.asarray(part.channels.indices, np.int64)
        reduced: Array = session.run(feeds)["reduced"]
        return reduced

    def part_of(self, layer: Layer, reduction: Reduction) -> Reduction:
        """What of a reduction is done on the device: channels by their numbers, and the average of all cells.

        A region lies elsewhere in each image, and the most active channels are found out from whole maps.
        """
        known = layer.has_space and layer.dtype in ("float32", "float16")
        if not (self.is_apart and known):
            return NO_REDUCTION
        channels = reduction.channels if reduction.channels and not reduction.channels.top else None
        whole = reduction.region is None and (channels is not None or reduction.channels is None)
        pool = reduction.pool if whole and reduction.pool == "avg" else "none"
        return Reduction(channels=channels if _saves(channels, layer) or pool == "avg" else None, pool=pool)

    def _compile(self, graph: Callable[..., bytes], *given: object) -> Session:
        return self._runtime.compile(graph(*given), Path())


def to_host(value: Value) -> Array:
    """A value as an array, copied where it lies on a device."""
    array: Array = value if isinstance(value, np.ndarray) else value.numpy()
    return array


def _saves(channels: Channels | None, layer: Layer) -> bool:
    return channels is not None and layer.channels is not None and len(channels.indices) < layer.channels
