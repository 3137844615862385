"""Who may come in: places for requests that are worked on or wait, and the bytes that all of them hold.

Places are taken on the event loop alone; bytes also in the threads that find out how many.
"""

import math
import threading
import time
from types import TracebackType

from service.errors import Overloaded
from service.pipeline.stopwatch import Stopwatch
from service.values import Identity

# How much of the last requests' pace counts for what is told of the next.
PACE_SHARE = 0.1
LONGEST_RETRY_S = 60


class Admission:
    """Bounded by places and by bytes; what does not fit is refused at once, never queued beyond."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.requests = 0
        self.held_bytes = 0
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._inside: set[Visit] = set()
        self._pace_s = 0.0
        self._last_left: float | None = None

    def check(self, visit: "Visit | None" = None) -> None:
        """Refuse before a body is read what would be refused after it.

        Raises:
            Overloaded
        """
        if self.requests >= self.max_requests:
            raise self._full(f"{self.requests} requests are in flight, as many as this service takes")
        if self.held_bytes >= self.max_bytes and not (visit and self._is_alone(visit)):
            raise self._full(f"the requests in flight hold {self.held_bytes} bytes, as many as are allowed")

    def visit(self) -> "Visit":
        """One request from its first byte to its answer's last."""
        return Visit(self)

    def enter(self, visit: "Visit | None" = None) -> None:
        """Take a place, for a visit or for work that goes on without one.

        Raises:
            Overloaded
        """
        self.check(visit)
        self.requests += 1
        if visit is not None:
            with self._lock:
                self._inside.add(visit)

    def leave(self, visit: "Visit | None" = None) -> None:
        """Give a place back."""
        self.requests -= 1
        if visit is not None:
            with self._lock:
                self._inside.discard(visit)
        now = time.monotonic()
        if self._last_left is not None and self.requests:
            self._pace_s += PACE_SHARE * (now - self._last_left - self._pace_s)
        self._last_left = now

    def take(self, count: int, visit: "Visit") -> None:
        """Hold bytes; whoever is alone may hold any number that the other limits allow.

        Raises:
            Overloaded
        """
        with self._lock:
            fits = self.held_bytes + count <= self.max_bytes or self._is_alone(visit)
            self.held_bytes += count if fits else 0
        if not fits:
            raise self._full(
                f"this request needs {count} bytes beside the {self.held_bytes} that others hold; "
                f"at most {self.max_bytes} are held at one time"
            )

    def add(self, count: int) -> None:
        """Hold bytes that are there already, or none any more."""
        with self._lock:
            self.held_bytes += count

    def _is_alone(self, visit: "Visit") -> bool:
        """Whether nobody else works or holds anything.

        A request holds its body by the visit that has the place, and what it is worked on with by
        another, which has none. Bodies that still arrive have no place either, so that counting
        places alone would let in any number of them.
        """
        own = {visit, *self._inside}
        return self.requests <= 1 and self.held_bytes == sum(each.held_bytes for each in own)

    def _full(self, detail: str) -> Overloaded:
        """Tells to come back when those in flight will have been answered, at the pace of the last ones."""
        wait_s = math.ceil(self.requests * self._pace_s)
        return Overloaded(detail, retry_after_s=min(max(wait_s, 1), LONGEST_RETRY_S))


class Visit:
    """What one request holds: a place while it is worked on, bytes until its answer is sent.

    `model` is the one that was found for it, `watch` measures what was done for it alone: of equal
    requests at the same time, for the first.
    """

    def __init__(self, admission: Admission) -> None:
        self.model: Identity | None = None
        self.watch = Stopwatch()
        self._admission = admission
        self._lock = threading.Lock()
        self._is_over = False
        self.held_bytes = 0
        self._has_place = False

    def enter(self) -> None:
        """Take a place.

        Raises:
            Overloaded
        """
        self._admission.enter(self)
        self._has_place = True

    def exit(self) -> None:
        """Give the place back; the bytes stay held."""
        if self._has_place:
            self._has_place = False
            self._admission.leave(self)

    def take(self, count: int) -> None:
        """Hold more bytes.

        Raises:
            Overloaded: they do not fit beside what others hold, or the request is over, as a thread
                that still works for it finds out.
        """
        with self._lock:
            if self._is_over:
                raise Overloaded("nobody waits for this request any more", retry_after_s=1)
            self._admission.take(count, self)
            self.held_bytes += count

    def add(self, count: int) -> None:
        """Hold bytes that are there already."""
        self._admission.add(count)
        self.held_bytes += count

    def __enter__(self) -> "Visit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.exit()
        with self._lock:
            self._is_over = True
            self._admission.add(-self.held_bytes)
            self.held_bytes = 0
