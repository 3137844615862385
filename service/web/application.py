"""The ASGI application: routes, middleware, what runs while it lives."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import __version__
from service.intake import inflate
from service.pipeline.work import Pipeline
from service.web import cors, journal, openapi, problems
from service.web.access import Access, Guard
from service.web.body_limit import BodyLimit, BodyRule
from service.web.context import Observer, Readiness, Tell
from service.web.disconnect import Disconnect
from service.web.metrics import Metrics
from service.web.middleware import HeadAsGet, RequestLifecycle
from service.web.routes import access, admin, features, images, models, operation, pages
from service.web.stall_timeout import StallTimeout
from service.web.v2 import inference, repository, server
from service.web.v2 import models as v2_models

# FastAPI's own would tell of messages of errors, which hold what clients sent; `traces` tells what is wanted.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}

# FastAPI only describes these: its steps from a request to an operation cost as much as all others of the
# event loop together.
COMPUTING = (*features.router.routes, *images.router.routes, *inference.router.routes)


class Application(FastAPI):
    """FastAPI behind the middleware and the plain routes of this service."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            scope["app"] = self
            await self.front(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build(
    pipeline: Pipeline,
    *,
    eager: bool,
    settings: Mapping[str, object],
    guard: Guard,
    observers: Sequence[Observer],
) -> Application:
    """Put HTTP in front of a pipeline; `settings` is what `get_version` shows."""
    app = Application(
        title="featuremaps",
        version=__version__,
        lifespan=_life(pipeline, eager, guard, observers),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.pipeline = pipeline
    app.state.readiness = Readiness()
    app.state.metrics = Metrics(pipeline, app.state.readiness)
    app.state.settings = settings
    app.state.guard = guard
    ours = (access.router, admin.router, admin.uploads, features.router, images.router, models.router)
    others = (operation.router, pages.router, server.router, v2_models.router, inference.router)
    for router in (*ours, *others, repository.router):
        app.include_router(router)
    openapi.install(app)
    tell = [app.state.metrics.observe, journal.write, *(observer.tell for observer in observers)]
    app.front = _front(_router(app), app.state.readiness, pipeline, guard, tell)
    return app


def _router(app: FastAPI) -> ASGIApp:
    """Plain routes for the operations that FastAPI only describes, then FastAPI's own router."""
    described = [route for route in COMPUTING if isinstance(route, Route)]
    plain = [Route(route.path, route.endpoint, methods=route.methods) for route in described]
    router = Router(plain, redirect_slashes=False, default=AsyncExitStackMiddleware(app.router))
    return ExceptionMiddleware(router, problems.HANDLERS)


def _front(
    app: ASGIApp, readiness: Readiness, pipeline: Pipeline, guard: Guard, tell: Sequence[Tell]
) -> ASGIApp:
    """What a request goes through before it is routed, the last one first."""
    admission, limits = pipeline.admission, pipeline.limits
    front: ASGIApp = Access(HeadAsGet(app), guard, admission)
    front = StallTimeout(Disconnect(front), limits.stall_s)
    front = BodyLimit(front, BodyRule(limits.body_bytes), _body_rules(pipeline))
    if guard.cors_origins:
        front = CORSMiddleware(front, **cors.options(guard.cors_origins))
    front = RequestLifecycle(front, admission, readiness, tell, cors.resource_policy(guard.cors_origins))
    if guard.trusted_proxies:
        # Its types are the server's own, which say of ASGI's what Starlette's say.
        return cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, front), list(guard.trusted_proxies)))
    return front


def _body_rules(pipeline: Pipeline) -> Mapping[str, BodyRule]:
    """The routes whose bodies differ: uploads go to disk, inferences may be compressed."""
    uploaded = BodyRule(pipeline.uploads.largest_bytes, is_held=False)
    inferred = BodyRule(pipeline.limits.body_bytes, encodings=inflate.CODINGS)
    rules = ((admin.uploads, uploaded), (inference.router, inferred))
    return {route.path: rule for router, rule in rules for route in router.routes if isinstance(route, Route)}


def _life(
    pipeline: Pipeline, eager: bool, guard: Guard, observers: Sequence[Observer]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs while the application does, and what ends with it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        metrics: Metrics = app.state.metrics
        tasks = [asyncio.create_task(work) for work in (_load(app, eager), metrics.keep_updated())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(metrics.update)
        await guard.close()
        await asyncio.to_thread(pipeline.close)
        for observer in observers:
            await asyncio.to_thread(observer.close)

    return life


async def _load(app: FastAPI, eager: bool) -> None:
    if eager:
        await app.state.pipeline.models.load_all()
    app.state.readiness.is_loaded = True
