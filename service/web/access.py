"""Who may come in: the one place that asks for keys. Plain ASGI, before anything of a request is read."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import Forbidden, ServiceError, Unauthenticated
from service.pipeline.admission import Admission
from service.web.context import caller_of, context_of
from service.web.keys import ADMIN, INFER, NOBODY, SCOPES, Caller, KeyRing
from service.web.problems import problem
from service.web.rates import Rates, address_of

# What holds no data of anybody: probes, metrics, and the pages with what they consist of.
OPEN_PATHS = frozenset(
    {"/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
)
# Asked by a proxy for each request, which it then sends on or answers from its cache.
CHECK_PATH = "/v1/access"
OPEN_FOLDERS = ("/static/", "/docs/")


@dataclass(frozen=True, eq=False)
class Guard:
    """What is asked of callers. Without `keys` everybody may infer, and nobody more."""

    keys: KeyRing | None = None
    rates: Rates | None = None
    allow_admin: bool = False
    cors_origins: Sequence[str] = ()
    trusted_proxies: Sequence[str] = ()

    def caller(self, scope: Scope) -> Caller:
        """Who sends a request.

        Raises:
            Unauthenticated
        """
        if self.keys is None:
            return Caller("", SCOPES[INFER])
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and (caller := self.keys.find(token.strip())) is not None:
            return caller
        if is_open(scope):
            return NOBODY
        if not kind:
            raise Unauthenticated("a key is needed: send it as `Authorization: Bearer <key>`")
        raise Unauthenticated("this key is not known here; keys are sent as `Authorization: Bearer <key>`")

    async def count(self, caller: Caller, scope: Scope) -> None:
        """Count a request of a caller, or of an address where callers have no keys.

        Raises:
            RateLimited
        """
        if self.rates is not None and not is_open(scope) and scope["path"] != CHECK_PATH:
            client = scope["client"][0] if scope.get("client") else ""
            await self.rates.take(caller.name or address_of(client))

    async def close(self) -> None:
        """Give back what is held."""
        if self.rates is not None:
            await self.rates.close()


class Access:
    """Find the caller of each request; refuse those who may not come in, and all bodies while it is full."""

    def __init__(self, app: ASGIApp, guard: Guard, admission: Admission) -> None:
        self._app = app
        self._guard = guard
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        context = context_of(scope)
        try:
            context.caller = self._guard.caller(scope)
            await self._guard.count(context.caller, scope)
            if not context.body_arrived.is_set():
                # Not in a route: refusing has to be cheap when everybody comes.
                self._admission.check()
        except ServiceError as error:
            await problem(Request(scope), error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_open(scope: Scope) -> bool:
    """Whether no key is asked for, and no rate counted."""
    path: str = scope["path"]
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


async def admit_admin(request: Request) -> None:
    """For operations that change what is served.

    Raises:
        Forbidden
    """
    guard: Guard = request.app.state.guard
    if not guard.allow_admin:
        raise Forbidden("models are not changed over HTTP here: the operator has to set allow_admin")
    if ADMIN in caller_of(request).scopes:
        return
    raise Forbidden(
        f"the key {caller_of(request).name!r} may not change models: that needs the scope {ADMIN}"
    )


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
