"""Memory and CPU time of a process and its children, as the operating system counts them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psutil

from service.errors import ConfigurationError

EVERY_S = 0.2
# Finding children reads every process of the machine, so it is done seldom.
LOOK_FOR_CHILDREN_EVERY_S = 1.0


class Process:
    """A process and its children.

    Raises:
        ConfigurationError: there is no such process, or it may not be looked at.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._parent = psutil.Process(pid)
            self._parent.memory_info()
        except psutil.Error as error:
            raise ConfigurationError(f"process {pid} cannot be looked at: {type(error).__name__}") from error
        self._children: list[psutil.Process] = []
        self._looked = -float("inf")

    def rss_bytes(self) -> int:
        """Resident memory, pages shared between them counted for each; 0 once it has ended."""
        return sum(_rss(process) for process in self._all())

    def cpu_seconds(self) -> float:
        """User and system time so far, of children that have ended too."""
        return sum(_cpu(process) for process in self._all())

    def _all(self) -> list[psutil.Process]:
        if time.monotonic() - self._looked > LOOK_FOR_CHILDREN_EVERY_S:
            self._looked = time.monotonic()
            try:
                self._children = self._parent.children(recursive=True)
            except psutil.Error:
                self._children = []
        return [self._parent, *self._children]


@dataclass
class Memory:
    """Resident bytes when watching began, at most, and when it ended."""

    before: int
    peak: int
    after: int


@asynccontextmanager
async def watched(process: Process) -> AsyncIterator[Memory]:
    """Watch a process's memory every 0.2 s until the block ends."""
    now = process.rss_bytes()
    memory = Memory(now, now, now)

    async def sample() -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            memory.peak = max(memory.peak, process.rss_bytes())

    sampling = asyncio.create_task(sample())
    try:
        yield memory
    finally:
        sampling.cancel()
        memory.after = process.rss_bytes()
        memory.peak = max(memory.peak, memory.after)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    # Children that have ended are counted here and no longer among the children.
    return float(times.user + times.system + times.children_user + times.children_system)
