"""Compiled parts of all models within one byte budget, least recently used out first.

Three kinds share it. *Segments* of a network hold every weight once and answer any layer. *Variants* of
a segment end at a layer inside it; they are small, and all of them together get a part of the budget,
so that looking at one layer after another does not grow. *Fused* sessions go from the input to one set
of layers and save the few percent that segments cost; they are built in the background, and only for
sets that are asked again and again.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, get_args

from cachetools import LRUCache

from service.engine.runner import Session
from service.errors import ModelFailed

Build = Callable[[], Session]
Kind = Literal["segment", "variant", "fused"]
KINDS: tuple[Kind, ...] = get_args(Kind)
VARIANTS_SHARE = 16
# A set of layers gets a session of its own when it was asked eight times among so many requests: a second
# copy of its weights pays only for whoever comes back soon, and many sets in turn would all get one some day.
FUSE_AFTER, FUSE_WITHIN = 8, 64
ASKED_KEPT = 4096
# The background thread gives way to whoever answers a request.
BACKGROUND_NICE = 4
log = logging.getLogger("featuremaps.plans")


@dataclass(frozen=True)
class Kept:
    """What is kept of one kind, and what building took since the start."""

    count: int = 0
    bytes: int = 0
    builds: int = 0
    build_seconds: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """How often a set was asked since its `first` request, at which the clock showed `since`."""

    first: int
    since: int
    count: int


class PlanCache:
    """Thread-safe; each key is built once however many ask, and nobody waits for another's key."""

    def __init__(
        self,
        budget_bytes: int,
        background: Executor | None = None,
        *,
        variants_share: int = VARIANTS_SHARE,
    ) -> None:
        self.budget_bytes = budget_bytes
        for_variants = budget_bytes // variants_share
        self._kept: LRUCache[Hashable, Session] = LRUCache(max(budget_bytes - for_variants, 1), _bytes_of)
        self._variants: LRUCache[Hashable, Session] = LRUCache(max(for_variants, 1), _bytes_of)
        self._building: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._background = background or ThreadPoolExecutor(1, "fuse", _give_way)
        self._fusing: Hashable | None = None
        self._asked: LRUCache[Hashable, _Asked] = LRUCache(ASKED_KEPT)
        self._asks = 0
        self._used: dict[Hashable, int] = {}
        self._kinds: dict[Hashable, Kind] = {}
        self._builds: dict[Kind, tuple[int, float]] = dict.fromkeys(KINDS, (0, 0.0))
        self._clock = 0

    @property
    def kept_bytes(self) -> int:
        """Estimated bytes of what is kept."""
        with self._lock:
            return int(self._kept.currsize + self._variants.currsize)

    def figures(self) -> Mapping[str, Kept]:
        """What is kept and was built, by kind."""
        with self._lock:
            sizes: dict[Kind, list[int]] = {kind: [] for kind in KINDS}
            for key, session in (*self._kept.items(), *self._variants.items()):
                sizes[self._kinds[key]].append(session.kept_bytes)
            return {kind: Kept(len(s), sum(s), *self._builds[kind]) for kind, s in sizes.items()}

    def __len__(self) -> int:
        return len(self._kept) + len(self._variants)

    def get(self, key: Hashable, build: Build, kind: Kind = "segment") -> Session:
        """The session of `key`, built by `build` where it is not kept.

        A session larger than its kind's budget is used and not kept. One that is dropped while it
        runs lives until that run ends.
        """
        with self._lock:
            if (session := self._find(key)) is not None:
                return session
            building = self._building.setdefault(key, threading.Lock())
        with building:
            with self._lock:
                if (session := self._find(key)) is not None:
                    return session
            try:
                session = self._built(build, kind)
                with self._lock:
                    self._keep(key, session, kind)
            finally:
                with self._lock:
                    self._building.pop(key, None)
        return session

    def fused(self, key: Hashable, build: Build, needed_bytes: int) -> Session | None:
        """The fused session of `key` where there is one; asked often enough, it is built in the background.

        Often is FUSE_AFTER times among FUSE_WITHIN requests. It takes room only from what nobody asked for
        meanwhile, so that many sets asked in turn do not push each other out.
        """
        with self._lock:
            if (session := self._find(key)) is not None:
                return session
            asked = self._ask(key)
            if asked.count < FUSE_AFTER or self._fusing is not None:
                return None
            del self._asked[key]
            if not self._has_room(needed_bytes, asked.since):
                return None
            self._fusing = key
        self._background.submit(self._fuse, key, build)
        return None

    def drop(self, owner: Hashable) -> None:
        """Forget everything whose key begins with this owner; what runs keeps its session until it ends."""
        with self._lock:
            for kept in (self._kept, self._variants):
                for key in [key for key in kept if _belongs(key, owner)]:
                    del kept[key]
            if _belongs(self._fusing, owner):
                self._fusing = None

    def _fuse(self, key: Hashable, build: Build) -> None:
        try:
            session = self._built(build, "fused")
            with self._lock:
                if self._fusing == key:  # Else its model was unloaded meanwhile.
                    self._keep(key, session, "fused")
        except ModelFailed:
            # Its segments answer on; whoever asks is told if they do not.
            log.warning("a fused session was not built", exc_info=True)
        finally:
            with self._lock:
                if self._fusing == key:
                    self._fusing = None

    def _ask(self, key: Hashable) -> "_Asked":
        """Count one more request for a set; what was asked too long ago counts no more."""
        self._asks += 1
        before = self._asked.get(key)
        if before is None or self._asks - before.first >= FUSE_WITHIN:
            before = _Asked(self._asks, self._clock, 0)
        self._asked[key] = asked = replace(before, count=before.count + 1)
        return asked

    def _find(self, key: Hashable) -> Session | None:
        self._clock += 1
        session: Session | None = self._kept.get(key) or self._variants.get(key)
        if session is not None:
            self._used[key] = self._clock
        return session

    def _built(self, build: Build, kind: Kind) -> Session:
        start = time.perf_counter()
        session = build()
        with self._lock:
            count, seconds = self._builds[kind]
            self._builds[kind] = (count + 1, seconds + time.perf_counter() - start)
        return session

    def _keep(self, key: Hashable, session: Session, kind: Kind) -> None:
        kept = self._variants if kind == "variant" else self._kept
        if session.kept_bytes <= kept.maxsize:
            kept[key] = session
            self._used[key], self._kinds[key] = self._clock, kind
            self._used = {k: t for k, t in self._used.items() if k in self._kept or k in self._variants}
            self._kinds = {k: self._kinds[k] for k in self._used}

    def _has_room(self, needed_bytes: int, since: int) -> bool:
        """Whether dropping what was last used before `since` makes room."""
        in_use = sum(s.kept_bytes for k, s in self._kept.items() if self._used.get(k, 0) >= since)
        return bool(in_use + needed_bytes <= self._kept.maxsize)


def _belongs(key: Hashable, owner: Hashable) -> bool:
    return isinstance(key, tuple) and key[0] == owner


def _bytes_of(session: Session) -> int:
    return session.kept_bytes


def _give_way() -> None:
    # Threads have priorities of their own on Linux only.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICE)
