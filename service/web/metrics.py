"""Prometheus metrics: what is seen of each request at the door, and the pipeline's figures beside it.

Labels are bounded: templates of routes, methods, statuses, stages, codes of refusals, and models by the
catalogue's names. Nothing that a client wrote becomes a label. Counting is done by hand, on the event loop
alone, since the library's locks and look-ups were measured to take five times as long.
"""

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from service import __version__
from service.pipeline.figures import Distribution
from service.pipeline.work import Pipeline
from service.web.context import LeftWhile, Readiness, RequestContext
from service.web.families import Joined, counter, counters, dump, gauge, histograms, info, labelled
from service.web.gauges import inside
from service.web.place import Place
from service.web.problems import CODES

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
# OpenTelemetry's advice for http.server.request.duration.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BYTES = tuple(1024 * 4**power for power in range(10))


class Metrics:
    """All metrics of one process; `observe` belongs to the event loop."""

    def __init__(self, pipeline: Pipeline, readiness: Readiness, place: Place) -> None:
        self._pipeline = pipeline
        self._readiness = readiness
        self._place = place
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        self._requests: Counter[tuple[str, str, int, str]] = Counter()
        self._seconds = defaultdict[tuple[str, str, int], Distribution](partial(Distribution, SECONDS))
        self._stages = defaultdict[str, Distribution](partial(Distribution, STAGE_SECONDS))
        self._received, self._sent = Distribution(BYTES), Distribution(BYTES)
        # Told from the start, since a rate of what begins at 1 does not see the first.
        self._rejected = Counter(dict.fromkeys(CODES, 0))
        self._cancelled: Counter[str] = Counter(dict.fromkeys(get_args(LeftWhile), 0))

    def observe(self, context: RequestContext) -> None:
        """Count a request that is over."""
        method = context.method if context.method in METHODS else "other"
        route = context.route or ""
        self._requests[method, route, context.status, context.model or ""] += 1
        self._seconds[method, route, context.status // 100].add(context.seconds)
        for stage, seconds in context.stages.items():
            self._stages[stage].add(seconds)
        self._received.add(context.received_bytes)
        self._sent.add(context.sent_bytes)
        if context.code is not None:
            self._rejected[context.code] += 1
        if context.left_while is not None:
            self._cancelled[context.left_while] += 1

    def dump(self) -> bytes:
        """Every family of this process, for another worker."""
        return dump(self._families())

    def expose(self, accept: str, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
        """This worker's metrics and the others' as text, and its media type; OpenMetrics where asked for."""
        encode, media_type = choose_encoder(accept)
        return encode(Joined(self._families(), others)), media_type

    def _families(self) -> Iterable[Metric]:
        families = (*self._door(), *inside(self._pipeline.figures()), *self._process.collect())
        return (labelled(family, worker=str(self._place.worker)) for family in families)

    def _door(self) -> Iterable[Metric]:
        build = {
            "version": __version__,
            "runtime": self._pipeline.runtime,
            "python": platform.python_version(),
        }
        yield info("build", "What answers", build)
        yield gauge("ready", "Whether new work should be sent here", self._readiness.ready)
        yield counter("worker_starts", "How often this worker was started", self._place.starts)
        requests = [([m, r, str(s), name], n) for (m, r, s, name), n in list(self._requests.items())]
        labels = ["method", "route", "status", "model"]
        yield counters("requests", "Requests that are over", labels, requests)
        seconds = [([m, r, f"{c}xx"], seen) for (m, r, c), seen in list(self._seconds.items())]
        text = "From a request's head to its answer's end"
        yield histograms("request_duration_seconds", text, ["method", "route", "status_class"], seconds)
        stages = [([stage], seen) for stage, seen in list(self._stages.items())]
        yield histograms("stage_duration_seconds", "Of each stage of the work", ["stage"], stages)
        yield histograms("request_bytes", "Of the bodies of requests", [], [([], self._received)])
        yield histograms("response_bytes", "Of the bodies of answers, as sent", [], [([], self._sent)])
        rejected = [([code], count) for code, count in list(self._rejected.items())]
        yield counters("rejected", "Refusals by their code", ["reason"], rejected)
        cancelled = [([stage], count) for stage, count in list(self._cancelled.items())]
        yield counters("cancelled", "Clients that left or stalled, while", ["stage"], cancelled)
