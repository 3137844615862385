"""What requests share: work under way, and decoded pictures and maps within a byte budget.

Lives on the event loop alone, so it needs no lock.
"""

import asyncio
from collections.abc import Callable, Container, Coroutine, Hashable
from typing import Any, TypeVar

from cachetools import LRUCache

from service.values import Array

T = TypeVar("T")
Make = Callable[[], Coroutine[Any, Any, T]]


class SingleFlight:
    """Work that somebody already waits for is waited for and not begun again.

    One caller leaving harms nobody; when the last one has left, the work is cancelled. `joined` counts
    those who found it begun.
    """

    def __init__(self) -> None:
        self.joined = 0
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}
        self._waiting: dict[asyncio.Task[Any], int] = {}

    async def join(self, key: Hashable, make: Make[T]) -> T:
        """The result of `make`, begun now or by whoever asked first.

        Raises:
            Whatever `make` raises, for all who wait for it.
        """
        task: asyncio.Task[T] | None = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make())
            self._waiting[task] = 0
            task.add_done_callback(lambda done: self._end(key, done))
        else:
            self.joined += 1
        self._waiting[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if task in self._waiting:
                self._waiting[task] -= 1
                if not self._waiting[task] and not task.done():
                    self._end(key, task)
                    task.cancel()
            # An error's traceback holds this frame, which must not hold the error in a cycle.
            del task

    def _end(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._waiting.pop(task, None)
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if task.done() and not task.cancelled():
            task.exception()  # Whoever still waits sees it; when all have left, nobody asks for it.


class Shared:
    """Values by key, least recently used out, and the work that make them.

    `hits` counts values that were at hand, `misses` those that had to be made.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Any], int]) -> None:
        self.hits = 0
        self.misses = 0
        self.max_bytes = max_bytes
        self._kept: LRUCache[Hashable, Any] = LRUCache(max(max_bytes, 1), size_of)
        self._size_of = size_of
        self._running = SingleFlight()

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return int(self._kept.currsize)

    def peek(self, key: Hashable) -> Any | None:
        """The value of a key where it is kept; whoever goes on from it counts the hit."""
        return self._kept.get(key)

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep a value that was made, where it is not larger than everything together."""
        self.misses += 1
        if self._size_of(value) <= self._kept.maxsize:
            self._kept[key] = value

    async def get(self, key: Hashable, make: Make[T]) -> T:
        """The value of a key, kept, under way, or made by `make` and kept.

        Raises:
            Whatever `make` raises, for all who wait for it.
        """
        kept: T | None = self._kept.get(key)
        if kept is not None:
            self.hits += 1
            return kept
        return await self._running.join(key, lambda: self._made(key, make))

    async def join(self, key: Hashable, make: Make[T]) -> T:
        """The result of `make`, begun now or by whoever asked first; what is worth keeping it keeps itself.

        Raises:
            Whatever `make` raises, for all who wait for it.
        """
        return await self._running.join(key, make)

    async def _made(self, key: Hashable, make: Make[T]) -> T:
        value = await make()
        self.keep(key, value)
        return value


class Known(Container[str]):
    """The maps of one image that are kept; holds on to those that a plan relies on."""

    def __init__(self, shared: Shared, origin: Hashable) -> None:
        self.values: dict[str, Array] = {}
        self._shared = shared
        self._origin = origin

    def __contains__(self, name: object) -> bool:
        value = self._shared.peek((self._origin, name))
        if value is not None:
            self.values[str(name)] = value
        return value is not None
