"""What is counted about the service's inside, as data; how it is published is the door's affair."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.engine.plan_cache import Kept


class Distribution:
    """How many values lie at or below each bound and above the one before it, and their sum.

    For one thread, such as the event loop's.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(frozen=True)
class ModelFigures:
    """One version of a model that has been loaded."""

    name: str
    version: str
    load_seconds: float


@dataclass(frozen=True)
class Figures:
    """The pipeline's inside at one moment.

    `queued` are the requests that wait for a thread by stage, `plans` what is compiled by kind, `states`
    the number of models by state, `coded` the bytes of compressed answers before and after. Batches are
    None where there are none.
    """

    requests: int
    max_requests: int
    held_bytes: int
    max_held_bytes: int
    queued: Mapping[str, int]
    joined: int
    plans: Mapping[str, Kept]
    max_plan_bytes: int
    cache_hits: int
    cache_misses: int
    cache_bytes: int
    max_cache_bytes: int
    coded: tuple[int, int]
    states: Mapping[str, int]
    models: Sequence[ModelFigures]
    batch_sizes: Distribution | None
    batch_pixels: Distribution | None
