"""What is counted about the service's inside, as data; how it is published is the door's affair."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.engine.plan_cache import Kept


@dataclass(frozen=True)
class Figures:
    """The pipeline's inside at one moment.

    `queued` are the requests that wait for a thread by stage, `plans` what is compiled by kind, `states`
    the number of models by state, `coded` the bytes of compressed answers before and after, `load_seconds`
    by name and version of the models in memory.
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
    load_seconds: Mapping[tuple[str, str], float]
