"""Compiled plans of all models within one byte budget, least recently used out first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from service.engine.runner import Session


class PlanCache:
    """Thread-safe; each key is built once however many ask, and nobody waits for another's key."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._kept: OrderedDict[Hashable, Session] = OrderedDict()
        self._building: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def kept_bytes(self) -> int:
        """Estimated bytes of what is kept."""
        with self._lock:
            return sum(session.kept_bytes for session in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, build: Callable[[], Session]) -> Session:
        """The session of `key`, built by `build` where it is not kept.

        A session larger than the whole budget is used and not kept. One that is dropped while it
        runs lives until that run ends.
        """
        with self._lock:
            if (session := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return session
            building = self._building.setdefault(key, threading.Lock())
        with building:
            with self._lock:
                if (session := self._kept.get(key)) is not None:
                    return session
            try:
                session = build()
                self._keep(key, session)
            finally:
                with self._lock:
                    self._building.pop(key, None)
        return session

    def _keep(self, key: Hashable, session: Session) -> None:
        with self._lock:
            if session.kept_bytes > self._budget:
                return
            self._kept[key] = session
            total = sum(kept.kept_bytes for kept in self._kept.values())
            while total > self._budget:
                _, dropped = self._kept.popitem(last=False)
                total -= dropped.kept_bytes
