"""Measuring in windows until throughput and latency hold still."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from service.cli.load import Load, Sample

# So many windows in a row have to agree; they are what is reported.
AGREEING = 3


@dataclass(frozen=True)
class Window:
    """What ended in a part of a measurement; `seconds` as they passed, not as planned."""

    seconds: float
    samples: tuple[Sample, ...]

    @cached_property
    def answers(self) -> tuple[Sample, ...]:
        """The whole answers of the 200s."""
        return tuple(sample for sample in self.samples if sample.answered)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds

    @property
    def median_s(self) -> float:
        """Median latency of the answers in seconds; 0 without any."""
        return percentile([sample.seconds for sample in self.answers], 50) if self.answers else 0.0


@dataclass(frozen=True)
class Schedule:
    """How long to measure: windows of `window_s` until they agree within `tolerance`, `max_s` at most.

    With `until_stable` off it is exactly `max_s`. A window is never longer than a third of `max_s`.
    """

    window_s: float = 3.0
    max_s: float = 60.0
    tolerance: float = 0.05
    until_stable: bool = True

    @property
    def count(self) -> int:
        """Windows at most."""
        return max(AGREEING, math.floor(self.max_s / self.window_s + 1e-9))

    @property
    def length_s(self) -> float:
        """Of one window, in seconds."""
        return self.max_s / self.count if not self.until_stable else min(self.window_s, self.max_s / AGREEING)


@dataclass(frozen=True)
class Measured:
    """All windows in order, and whether the last ones agree.

    They ended at `end`, a time of `time.perf_counter`; `late` is what was under way then, once it is over.
    """

    windows: tuple[Window, ...]
    stable: bool
    until_stable: bool
    end: float
    late: tuple[Sample, ...] = ()

    @property
    def kept(self) -> Window:
        """What is reported, as one window: the last ones that agree, or all where the time was fixed."""
        return join(self.windows[-AGREEING:] if self.until_stable else self.windows)

    @property
    def begun(self) -> tuple[Sample, ...]:
        """What began in the windows kept, whenever it ended: else the slowest would never be counted."""
        start = self.end - self.kept.seconds
        return tuple(s for s in (*self.whole.samples, *self.late) if start <= s.start < self.end)

    @property
    def whole(self) -> Window:
        """Everything, so that no refusal is hidden in a window that is left out."""
        return join(self.windows)


async def measure(load: Load, schedule: Schedule, seen: Callable[[Window], None]) -> Measured:
    """Watch a running load window by window; `seen` is told each."""
    windows: list[Window] = []
    while len(windows) < schedule.count:
        start = time.perf_counter()
        await asyncio.sleep(schedule.length_s)
        windows.append(Window(time.perf_counter() - start, tuple(load.take())))
        seen(windows[-1])
        if schedule.until_stable and stable(windows, schedule.tolerance):
            break
    is_stable = stable(windows, schedule.tolerance)
    return Measured(tuple(windows), is_stable, schedule.until_stable, time.perf_counter())


def stable(windows: Sequence[Window], tolerance: float) -> bool:
    """Whether the last windows' throughput and median latency each agree."""
    last = windows[-AGREEING:]
    return (
        len(last) == AGREEING
        and agree([window.rate for window in last], tolerance)
        and agree([window.median_s for window in last], tolerance)
    )


def agree(values: Sequence[float], tolerance: float) -> bool:
    """Whether all lie within `tolerance`, a share, of their mean; nothing agrees about zero."""
    mean = math.fsum(values) / len(values)
    return mean > 0 and all(abs(value - mean) <= tolerance * mean for value in values)


def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest rank: the smallest value that at least `percent` of all do not exceed, always one of them.

    `percent` is a whole number from 0 to 100, which keeps the rank exact; `values` is not empty.
    """
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]


def join(windows: Sequence[Window]) -> Window:
    """Windows that follow each other as one."""
    seconds = math.fsum(window.seconds for window in windows)
    return Window(seconds, tuple(sample for window in windows for sample in window.samples))
