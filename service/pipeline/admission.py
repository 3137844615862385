"""Admission: a bounded number of requests that are worked on or wait, and the bytes that all of them hold.

Slots are taken on the event loop alone; bytes also in the threads that find out how many.
"""

import math
import threading
import time
from collections.abc import Callable
from types import TracebackType

from service.errors import Overloaded
from service.pipeline.stopwatch import Stopwatch
from service.values import Identity

# How much of the last requests' pace counts in the estimate for the next.
PACE_SHARE = 0.1
LONGEST_RETRY_S = 60


class Admission:
    """Bounds requests and bytes; what does not fit is refused at once, never queued beyond."""

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.requests = 0
        self.held_bytes = 0
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._pace_s = 0.0
        self._last_release: float | None = None

    def permit(self) -> "Permit":
        """The permit of one request, from its first byte to its answer's last."""
        return Permit(self)

    def check(self) -> None:
        """Refuse before a body is read what would be refused after it.

        Raises:
            Overloaded
        """
        self._check_requests()
        if self.held_bytes >= self.max_bytes:
            raise self._bytes_refusal()

    def abandoned(self) -> Callable[[], None]:
        """Count work that a thread cannot leave as a request, until the returned function is called."""
        self.requests += 1
        return self._release

    def _acquire(self, permit: "Permit") -> None:
        self._check_requests()
        if self.held_bytes >= self.max_bytes and not self._is_alone(permit):
            raise self._bytes_refusal()
        self.requests += 1

    def _release(self) -> None:
        self.requests -= 1
        now = time.monotonic()
        if self._last_release is not None and self.requests:
            self._pace_s += PACE_SHARE * (now - self._last_release - self._pace_s)
        self._last_release = now

    def _reserve(self, count: int, permit: "Permit") -> None:
        with self._lock:
            fits = self.held_bytes + count <= self.max_bytes or self._is_alone(permit)
            if fits:
                self._count(count, permit)
        if not fits:
            raise self._full(
                f"this request needs {count} bytes beside the {self.held_bytes} that others hold; "
                f"at most {self.max_bytes} are held at one time"
            )

    def _add(self, count: int, permit: "Permit") -> None:
        with self._lock:
            self._count(count, permit)

    def _count(self, count: int, permit: "Permit") -> None:
        self.held_bytes += count
        permit.held_bytes += count
        permit._request.bytes += count

    def _is_alone(self, permit: "Permit") -> bool:
        """Whether all bytes are held for one request, the only one: it may exceed the budget."""
        return self.requests <= 1 and self.held_bytes == permit._request.bytes

    def _check_requests(self) -> None:
        if self.requests >= self.max_requests:
            raise self._full(f"{self.requests} requests are in flight, as many as this service takes")

    def _bytes_refusal(self) -> Overloaded:
        return self._full(f"the requests in flight hold {self.held_bytes} bytes, as many as are allowed")

    def _full(self, detail: str) -> Overloaded:
        """Refuse until those in flight will have been answered, at the pace of the last ones."""
        wait_s = math.ceil(self.requests * self._pace_s)
        return Overloaded(detail, retry_after_s=min(max(wait_s, 1), LONGEST_RETRY_S))


class _Request:
    """Bytes that are held for one request, by its computation too."""

    bytes = 0


class Permit:
    """What one request holds: a slot while it is worked on, bytes until its answer is sent.

    `model` is the one that was found for it, `timer` counts what was done for it alone: of coalesced
    requests, for the first.
    """

    def __init__(self, admission: Admission, request: "Permit | None" = None) -> None:
        self.model: Identity | None = None
        self.timer = Stopwatch()
        self.held_bytes = 0
        self._admission = admission
        self._request: _Request = request._request if request else _Request()
        self._lock = threading.Lock()
        self._is_over = False
        self._has_slot = False

    def for_computation(self) -> "Permit":
        """The permit of the computation that this request begins: it holds bytes only.

        Coalesced requests share a computation, which may outlive the request that began it.
        """
        return Permit(self._admission, self)

    def acquire(self) -> None:
        """Take a slot.

        Raises:
            Overloaded
        """
        self._admission._acquire(self)
        self._has_slot = True

    def release(self) -> None:
        """Give the slot back; the bytes stay held."""
        if self._has_slot:
            self._has_slot = False
            self._admission._release()

    def reserve(self, count: int) -> None:
        """Hold more bytes.

        Raises:
            Overloaded: they do not fit within the budget, or the request is over, as a thread that still
                works for it finds out.
        """
        with self._lock:
            if self._is_over:
                raise Overloaded("the client of this request has disconnected", retry_after_s=1)
            self._admission._reserve(count, self)

    def add(self, count: int) -> None:
        """Hold bytes that are there already."""
        self._admission._add(count, self)

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        with self._lock:
            self._is_over = True
            self._admission._add(-self.held_bytes, self)
