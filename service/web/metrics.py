"""Prometheus metrics of requests, and the text that `/metrics` answers.

Labels are bounded: templates of routes, methods, statuses, stages, codes of problem details, and models by
the catalogue's names. No text that a client wrote becomes a label.

Several workers publish together in the library's multiprocess mode: where PROMETHEUS_MULTIPROC_DIR is set
before this module is imported, each process keeps its values in files of that directory, and a scrape reads
the files of all of them. This mode runs no custom collectors, so only a single process has `process_*` and
`python_*`.
"""

import asyncio
import os
import platform
from functools import cache, partial
from typing import get_args

import prometheus_client
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from service import __version__
from service.pipeline.work import Pipeline
from service.web.context import LeftWhile, Readiness, RequestContext
from service.web.gauges import PREFIX, PipelineMetrics, gauges
from service.web.problems import CODES

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
# OpenTelemetry's advice for http.server.request.duration.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES = tuple(1024 * 4**power for power in range(10))
# How old the gauges of the other workers may be in a scrape.
UPDATE_EVERY_S = 1.0
# The library reads the same variable when it is imported.
IS_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR" in os.environ
# Series of creation times, which multiprocess mode does not have.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class RequestMetrics:
    """Metrics of requests that are over."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=PREFIX, registry=registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=registry)
        route = ["method", "route"]
        requests = counter("requests", "Requests that are over", [*route, "status", "model"])
        text = "From the request's head to the end of the answer"
        seconds = histogram("request_duration_seconds", text, [*route, "status_class"], buckets=SECONDS)
        stages = histogram("stage_duration_seconds", "Time of each stage", ["stage"], buckets=STAGE_SECONDS)
        rejected = counter("rejected", "Errors sent to clients by their code", ["reason"])
        cancelled = counter("cancelled", "Disconnects and stall timeouts", ["stage"])
        # `labels` was measured to take a third of `observe`.
        self._requests = cache(requests.labels)
        self._seconds, self._stages = cache(seconds.labels), cache(stages.labels)
        self._rejected, self._cancelled = cache(rejected.labels), cache(cancelled.labels)
        self._received = histogram("request_bytes", "Request bodies", buckets=BYTES)
        self._sent = histogram("response_bytes", "Response bodies as sent", buckets=BYTES)
        # Present from the start, since a rate of a series that begins at 1 misses the first event.
        for code in CODES:
            self._rejected(code)
        for stage in get_args(LeftWhile):
            self._cancelled(stage)

    def observe(self, context: RequestContext) -> None:
        """Count a request that is over."""
        method = context.method if context.method in METHODS else "other"
        route = context.route or ""
        self._requests(method, route, context.status, context.model or "").inc()
        self._seconds(method, route, f"{context.status // 100}xx").observe(context.seconds)
        for stage, seconds in context.stages.items():
            self._stages(stage).observe(seconds)
        self._received.observe(context.received_bytes)
        self._sent.observe(context.sent_bytes)
        if context.code is not None:
            self._rejected(context.code).inc()
        if context.left_while is not None:
            self._cancelled(context.left_while).inc()


class Metrics:
    """All metrics of one application; in multiprocess mode a process may have only one."""

    def __init__(self, pipeline: Pipeline, readiness: Readiness) -> None:
        registry = CollectorRegistry()
        self.observe = RequestMetrics(registry).observe
        self._inside = PipelineMetrics(registry, pipeline)
        self._readiness = readiness
        self._ready = gauges(registry)("ready", "Processes that take new work")
        build = {"version": __version__, "runtime": pipeline.runtime, "python": platform.python_version()}
        info = gauges(registry, "livemax")("build_info", "Versions of what answers", list(build))
        info.labels(**build).set(1)
        Counter("worker_starts", "Started processes", namespace=PREFIX, registry=registry).inc()
        self._published = _published(registry)

    def update(self) -> None:
        """Set the gauges, and the counters of the pipeline, to what they are now; for a thread."""
        self._ready.set(self._readiness.ready)
        self._inside.update()

    async def keep_updated(self) -> None:
        """Update for scrapes that other workers answer."""
        while True:
            await asyncio.sleep(UPDATE_EVERY_S)
            await asyncio.to_thread(self.update)

    def expose(self, accept: str) -> tuple[bytes, str]:
        """The metrics of all workers as text, and its media type; OpenMetrics where `accept` asks for it.

        To be called in a thread: in multiprocess mode it reads files.
        """
        self.update()
        encode, media_type = choose_encoder(accept)
        return encode(self._published), media_type


def _published(registry: CollectorRegistry) -> CollectorRegistry:
    """What a scrape reads: the files of all workers, or this process's own metrics."""
    if IS_MULTIPROCESS:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry
