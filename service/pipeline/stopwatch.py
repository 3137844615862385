"""How long each step of a request took, measured as data and published at the door."""

import time
from contextlib import AbstractContextManager
from typing import NamedTuple


class Span(NamedTuple):
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

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Add the time of the block to a stage."""
        return _Measure(self, stage)

    def since(self, stage: str, start: float) -> None:
        """Add the seconds from `start` until now to a stage."""
        seconds = time.perf_counter() - start
        self.spans.append(Span(stage, start, seconds))
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class _Measure:
    """A class, since an answer has seven of them and a generator's cost three times as much."""

    def __init__(self, watch: Stopwatch, stage: str) -> None:
        self._watch = watch
        self._stage = stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._watch.since(self._stage, self._start)
