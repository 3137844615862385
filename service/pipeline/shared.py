"""What one image's requests share: decoded pictures and computed maps, within a byte budget.

Lives on the event loop alone, so it needs no lock. Work that somebody already waits for is waited
for and not begun again; one caller leaving harms nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any

from cachetools import LRUCache


class Shared:
    """Values by key, least recently used out; `size_of` tells a value's bytes."""

    def __init__(self, max_bytes: int, size_of: Callable[[Any], int]) -> None:
        self._kept: LRUCache[Hashable, Any] = LRUCache(max(max_bytes, 1), size_of)
        self._size_of = size_of
        self._in_flight: dict[Hashable, asyncio.Task[dict[Hashable, Any]]] = {}

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept."""
        return int(self._kept.currsize)

    async def get(
        self,
        keys: Sequence[Hashable],
        make: Callable[[Sequence[Hashable]], Awaitable[dict[Hashable, Any]]],
    ) -> dict[Hashable, Any]:
        """The values of all keys; `make` is asked once, for those that nobody has or makes.

        Raises:
            Whatever `make` raises, for all who wait for it.
        """
        found = {key: self._kept[key] for key in keys if key in self._kept}
        waits = {key: self._in_flight[key] for key in keys if key in self._in_flight}
        missing = [key for key in keys if key not in found and key not in waits]
        if missing:
            task = asyncio.ensure_future(self._make(missing, make))
            # Whoever still waits sees the failure; when all have left, nobody asks for it.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            waits |= dict.fromkeys(missing, task)
            self._in_flight |= dict.fromkeys(missing, task)
        for key, task in waits.items():
            found[key] = (await asyncio.shield(task))[key]
        return found

    async def _make(
        self,
        keys: Sequence[Hashable],
        make: Callable[[Sequence[Hashable]], Awaitable[dict[Hashable, Any]]],
    ) -> dict[Hashable, Any]:
        try:
            made = await make(keys)
            for key, value in made.items():
                if self._size_of(value) <= self._kept.maxsize:
                    self._kept[key] = value
            return made
        finally:
            for key in keys:
                del self._in_flight[key]
