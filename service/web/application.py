"""The ASGI application: routes, middleware, what runs while it lives."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service import __version__
from service.pipeline.work import Pipeline
from service.web import cors, journal, openapi, problems, siblings
from service.web.access import Access, Guard
from service.web.door import Readiness
from service.web.exchange import Observer
from service.web.metrics import Metrics
from service.web.middleware import HeadAsGet, RequestContext
from service.web.place import Place
from service.web.routes import access, admin, features, images, models, operation, pages
from service.web.v2 import inference, repository, server
from service.web.v2 import models as v2_models
from service.web.visits import Visits


def build(
    pipeline: Pipeline,
    *,
    eager: bool,
    settings: Mapping[str, object],
    guard: Guard,
    place: Place,
    observers: Sequence[Observer],
) -> FastAPI:
    """Put the door in front of a pipeline; `settings` is what `get_version` shows."""

    app = FastAPI(
        title="featuremaps",
        version=__version__,
        lifespan=_life(pipeline, eager, guard, observers),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.pipeline = pipeline
    app.state.readiness = Readiness()
    app.state.metrics = Metrics(pipeline, app.state.readiness, place)
    app.state.place = place
    app.state.settings = settings
    app.state.guard = guard
    ours = (access, admin, features, images, models, operation, pages)
    for routes in (*ours, server, v2_models, inference, repository):
        app.include_router(routes.router)
    problems.install(app)
    openapi.install(app)
    _stand_before(app, pipeline, guard, observers)
    return app


def _stand_before(app: FastAPI, pipeline: Pipeline, guard: Guard, observers: Sequence[Observer]) -> None:
    """What a request goes through before it is routed."""
    # The last one added stands outermost.
    app.add_middleware(Visits, admission=pipeline.admission, limits=pipeline.limits)
    app.add_middleware(HeadAsGet)
    app.add_middleware(Access, guard=guard, admission=pipeline.admission, limits=pipeline.limits)
    if guard.cors_origins:
        app.add_middleware(CORSMiddleware, **cors.options(guard.cors_origins))
    app.add_middleware(
        RequestContext,
        readiness=app.state.readiness,
        tell=[app.state.metrics.observe, journal.write, *(observer.tell for observer in observers)],
        resource_policy=cors.resource_policy(guard.cors_origins),
    )
    if guard.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(guard.trusted_proxies))


def _life(
    pipeline: Pipeline, eager: bool, guard: Guard, observers: Sequence[Observer]
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs while the application does, and what ends with it."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(app, eager))
        async with siblings.answering(app.state.place, app.state.metrics):
            yield
        loading.cancel()
        await guard.close()
        await asyncio.to_thread(pipeline.close)
        for observer in observers:
            await asyncio.to_thread(observer.close)

    return life


async def _load(app: FastAPI, eager: bool) -> None:
    if eager:
        await app.state.pipeline.load_all()
    app.state.readiness.is_loaded = True
