"""One request and its answer, as metrics, the log and traces tell of them afterwards."""

import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from starlette.types import Scope

from service.pipeline.admission import Permit
from service.pipeline.stopwatch import Span

EXCHANGE = "featuremaps.exchange"
CALLER = "featuremaps.caller"
# As nginx logs it: the client left before an answer began.
CLIENT_LEFT = 499
# In the order in which a request goes through them.
LeftWhile = Literal["sending", "queued", "running", "sending_answer"]


class Exchange:
    """Gathered while the request is worked on, told when it is over.

    `code` is that of the refusal, `left_while` what the service did for a client that left or stalled.
    """

    def __init__(self, scope: Scope, request_id: str) -> None:
        self.scope = scope
        self.request_id = request_id
        self.method: str = scope["method"]
        self.began_at = time.time()
        self.start = time.perf_counter()
        self.seconds = 0.0
        self.status = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self.code: str | None = None
        self.left_while: LeftWhile | None = None
        self.permit: Permit | None = None

    @property
    def route(self) -> str | None:
        """The template of the operation's path; None where the request was refused before, or has none."""
        route = self.scope.get("route")
        return None if route is None else str(route.path)

    @property
    def model(self) -> str | None:
        """The name of the model that was found for it, which is one of the catalogue's."""
        identity = self.permit.model if self.permit else None
        return identity.name if identity else None

    @property
    def caller(self) -> str | None:
        """Who asked, where callers have names."""
        return getattr(self.scope.get(CALLER), "name", None) or None

    @property
    def spans(self) -> tuple[Span, ...]:
        """The stages of what was done for this request alone."""
        return tuple(self.permit.timer.spans) if self.permit else ()

    @property
    def stages(self) -> Mapping[str, float]:
        """The same as seconds by stage; a thread that still works on is not waited for."""
        return dict(self.permit.timer.seconds) if self.permit else {}

    def end(self, status: int) -> None:
        """It is over; no status means that no answer began."""
        self.status = status or CLIENT_LEFT
        self.seconds = time.perf_counter() - self.start


Tell = Callable[[Exchange], None]


class Observer(Protocol):
    """Who is told of every request that is over, and wants to know when the service ends."""

    def tell(self, exchange: Exchange) -> None:
        """It is over."""

    def close(self) -> None:
        """The service ends; may take a while."""


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a request belongs to."""
    exchange: Exchange = scope[EXCHANGE]
    return exchange
