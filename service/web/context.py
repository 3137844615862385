"""One request as the application knows it, and how a route reaches what it shares with all requests."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fastapi import Request
from starlette.types import Scope

from service.errors import NotReady
from service.pipeline.admission import Permit
from service.pipeline.stopwatch import Span
from service.pipeline.work import Pipeline
from service.web.keys import NOBODY, Caller

WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")
# As nginx logs it: the client disconnected before an answer began.
CLIENT_LEFT = 499
# In the order in which a request goes through them.
LeftWhile = Literal["sending", "queued", "running", "sending_answer"]


@dataclass(eq=False)
class RequestContext:
    """What is known of one request while it is answered; metrics, log and traces read it at its end.

    `permit` is the request's permit, `body_arrived` is set when all of the body was received, `code` is that
    of the problem document, `left_while` the step at which the client disconnected or stalled.
    """

    scope: Scope
    request_id: str
    permit: Permit
    caller: Caller = NOBODY
    body_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    received_bytes: int = 0
    sent_bytes: int = 0
    status: int = 0
    code: str | None = None
    left_while: LeftWhile | None = None
    began_at: float = field(default_factory=time.time)
    start: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.scope.setdefault("state", {})["context"] = self
        if self.method in WITHOUT_BODY:
            self.body_arrived.set()

    @property
    def method(self) -> str:
        """The method that the client sent."""
        return str(self.scope["method"])

    @property
    def route(self) -> str | None:
        """The template of the operation's path; None if the request was refused before, or has none."""
        route = self.scope.get("route")
        return None if route is None else str(route.path)

    @property
    def model(self) -> str | None:
        """The name of the model that was found for the request, as the catalogue has it."""
        return self.permit.model.name if self.permit.model else None

    @property
    def spans(self) -> tuple[Span, ...]:
        """The stages of the work for this request alone."""
        return tuple(self.permit.timer.spans)

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds by stage, without a thread that still works."""
        return dict(self.permit.timer.seconds)

    def disconnect(self) -> None:
        """Note at which step the client disconnected or stalled."""
        if self.status:
            self.left_while = "sending_answer"
        elif not self.body_arrived.is_set():
            self.left_while = "sending"
        else:
            self.left_while = "running" if self.permit.timer.has_begun else "queued"

    def end(self) -> None:
        """Note that the request is over; no status means that no answer began."""
        self.status = self.status or CLIENT_LEFT
        self.seconds = time.perf_counter() - self.start


Tell = Callable[[RequestContext], None]


class Observer(Protocol):
    """Sees every request at its end, and is closed with the application."""

    def tell(self, context: RequestContext) -> None:
        """Record a request that is over."""

    def close(self) -> None:
        """Close; may take a while."""


class Readiness:
    """Whether new work should be sent here."""

    def __init__(self) -> None:
        self.is_loaded = False
        self.is_draining = False

    @property
    def ready(self) -> bool:
        """Whether models are loaded and the service does not shut down."""
        return self.is_loaded and not self.is_draining

    def check(self) -> None:
        """Raises:
        NotReady: models are still loading, or the service is ending.
        """
        if self.is_draining:
            raise NotReady("the service is ending: send new work elsewhere", retry_after_s=1)
        if not self.is_loaded:
            raise NotReady("models are still loading; list_models shows which", retry_after_s=1)


def context_of(scope: Scope) -> RequestContext:
    """Return the context of a request."""
    context: RequestContext = scope["state"]["context"]
    return context


def permit_of(request: Request) -> Permit:
    """Return the permit of a request."""
    return context_of(request.scope).permit


def caller_of(request: Request) -> Caller:
    """Return the caller who sent a request."""
    return context_of(request.scope).caller


def pipeline_of(request: Request) -> Pipeline:
    """Return the pipeline of this application."""
    pipeline: Pipeline = request.app.state.pipeline
    return pipeline


def readiness_of(request: Request) -> Readiness:
    """Return the readiness of this application."""
    readiness: Readiness = request.app.state.readiness
    return readiness
