"""The ASGI application: routes, middleware, what runs while it lives."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import __version__
from service.pipeline.work import Pipeline
from service.web import cors, journal, openapi, problems
from service.web.access import Access, Guard
from service.web.direct import Direct
from service.web.door import Readiness
from service.web.exchange import Observer
from service.web.metrics import Metrics
from service.web.middleware import HeadAsGet, RequestContext
from service.web.routes import access, admin, features, images, models, operation, pages
from service.web.v2 import inference, repository, server
from service.web.v2 import models as v2_models
from service.web.visits import Visits

# FastAPI's own would tell of messages of errors, which hold what clients sent; `traces` tells what is wanted.
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}

COMPUTING = [*features.router.routes, *images.router.routes, *inference.router.routes]


class Application(FastAPI):
    """FastAPI behind what a request goes through first, which need not go through FastAPI's own steps."""

    way_in: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        scope["app"] = self
        await self.way_in(scope, receive, send)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As FastAPI answers."""
        await super().__call__(scope, receive, send)


def build(
    pipeline: Pipeline,
    *,
    eager: bool,
    settings: Mapping[str, object],
    guard: Guard,
    observers: Sequence[Observer],
) -> Application:
    """Put the door in front of a pipeline; `settings` is what `get_version` shows."""

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
    ours = (access, admin, features, images, models, operation, pages)
    for routes in (*ours, server, v2_models, inference, repository):
        app.include_router(routes.router)
    problems.install(app)
    openapi.install(app)
    app.way_in = _way_in(app, pipeline, guard, observers)
    return app


def _way_in(app: "Application", pipeline: Pipeline, guard: Guard, observers: Sequence[Observer]) -> ASGIApp:
    """What a request goes through before FastAPI routes it, the last one first."""
    admission, limits = pipeline.admission, pipeline.limits
    way: ASGIApp = Direct(app.route, COMPUTING)
    way = Visits(way, admission, limits)
    way = HeadAsGet(way)
    way = Access(way, guard, admission, limits)
    if guard.cors_origins:
        way = CORSMiddleware(way, **cors.options(guard.cors_origins))
    way = RequestContext(
        way,
        readiness=app.state.readiness,
        tell=[app.state.metrics.observe, journal.write, *(observer.tell for observer in observers)],
        resource_policy=cors.resource_policy(guard.cors_origins),
    )
    if guard.trusted_proxies:
        # Its types are the server's own, which say of ASGI's what Starlette's say.
        return cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, way), list(guard.trusted_proxies)))
    return way


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
