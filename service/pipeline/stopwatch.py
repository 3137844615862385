"""How long each step of a request took, measured as data and published at the door."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """One stretch of a stage; `start` is `time.perf_counter`'s."""

    stage: str
    start: float
    seconds: float


class Stopwatch:
    """Seconds by stage, added up, and the stretches that they are made of."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.spans: list[Span] = []

    @property
    def has_begun(self) -> bool:
        """Whether anything was begun, or all of it still waits."""
        return bool(self.spans)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.since(stage, start)

    def since(self, stage: str, start: float) -> None:
        """Add the seconds from `start` until now to a stage."""
        seconds = time.perf_counter() - start
        self.spans.append(Span(stage, start, seconds))
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
