"""Resident memory of a process over time, and whether it grows."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import psutil

MB = 1e6
WARM_UP = 0.25


@dataclass(frozen=True)
class Slope:
    """MB an hour with its standard error, and over how many seconds it was fitted."""

    mb_per_hour: float
    error: float
    seconds: float

    @property
    def within_noise(self) -> bool:
        """Whether it differs from zero by no more than two standard errors."""
        return abs(self.mb_per_hour) <= 2 * self.error

    @property
    def least_growth_mb(self) -> float:
        """What was gained over the time fitted, less two standard errors; 0 where that may be nothing."""
        return max(self.mb_per_hour - 2 * self.error, 0.0) * self.seconds / 3600

    def __str__(self) -> str:
        if not self.seconds:
            return "too few samples to tell"
        verdict = "within noise" if self.within_noise else "beyond noise"
        return f"{self.mb_per_hour:+.1f} ± {self.error:.1f} MB an hour over {self.seconds:.0f} s, {verdict}"


def rss_bytes(process: psutil.Process) -> int:
    """Resident memory with that of the children, where shared pages count for each; 0 once it has ended."""
    try:
        return sum(map(_own_rss_bytes, (process, *process.children(recursive=True))))
    except psutil.NoSuchProcess:
        return 0


def _own_rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def sampled(pid: int, every_s: float = 1.0) -> Iterator[list[tuple[float, float]]]:
    """(seconds, bytes) of a process and its children, once a second until the block ends."""
    process, ended = psutil.Process(pid), threading.Event()
    samples: list[tuple[float, float]] = []

    def follow() -> None:
        begun = time.monotonic()
        while True:
            samples.append((time.monotonic() - begun, float(rss_bytes(process))))
            if ended.wait(every_s):
                return

    following = threading.Thread(target=follow)
    following.start()
    try:
        yield samples
    finally:
        ended.set()
        following.join()


def slope(samples: Sequence[tuple[float, float]], warm_up: float = WARM_UP) -> Slope:
    """Least squares through what comes after the warm-up, a share of the whole time.

    Memory now resembles memory a second ago, so samples are worth less than their number: the standard
    error is widened by sqrt((1 + r) / (1 - r)), r the residuals' correlation from each to the next.
    """
    times, values = np.array(samples).T
    kept = times >= times[0] + warm_up * (times[-1] - times[0])
    hours, mb = times[kept] / 3600, values[kept] / MB
    if len(hours) < 4:
        return Slope(0.0, float("inf"), 0.0)
    centred = hours - hours.mean()
    gradient = float(centred @ mb / (centred @ centred))
    rest = mb - mb.mean() - gradient * centred
    error = np.sqrt(rest @ rest / (len(mb) - 2) / (centred @ centred))
    alike = np.clip(rest[1:] @ rest[:-1] / max(rest @ rest, 1e-12), 0.0, 0.98)
    return Slope(gradient, float(error * np.sqrt((1 + alike) / (1 - alike))), float(np.ptp(times[kept])))
