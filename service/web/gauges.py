"""The pipeline's internal counters as Prometheus metrics.

The pipeline counts in plain numbers; `update` copies them. With several workers a metric is the sum over all
of them, or the largest value (`livemax`) where every worker counts the same models.
"""

import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from service.engine.plan_cache import Kept
from service.pipeline.figures import Figures
from service.pipeline.work import Pipeline

PREFIX = "featuremaps"
# How the values of several live workers are merged.
Mode = Literal["livesum", "livemax"]
STATES = ("unloaded", "loading", "ready", "failed")
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
BATCH_PIXELS = (10_000, 50_000, 100_000, 500_000, 1_000_000, 2_000_000, 4_000_000, 16_000_000)


def gauges(registry: CollectorRegistry, mode: Mode = "livesum") -> Callable[..., Gauge]:
    """Return a constructor of gauges; `mode` says how the values of several live workers are merged."""
    return partial(Gauge, namespace=PREFIX, registry=registry, multiprocess_mode=mode)


class PipelineMetrics:
    """Metrics that follow one pipeline; `update` may be called from any thread."""

    def __init__(self, registry: CollectorRegistry, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._define_gauges(registry)
        self._define_counters(registry)
        pipeline.observe_batches(self._observe_batch)

    def _define_gauges(self, registry: CollectorRegistry) -> None:
        gauge, largest = gauges(registry), gauges(registry, "livemax")
        # By the name of the field in `Figures`.
        self._numbers = {
            "requests": gauge("in_flight", "Requests that are worked on or wait"),
            "max_requests": gauge("max_in_flight", "Configured limit of featuremaps_in_flight"),
            "held_bytes": gauge("held_bytes", "Bodies, images, maps and answers of all requests"),
            "max_held_bytes": gauge("max_held_bytes", "Configured limit of featuremaps_held_bytes"),
            "cache_bytes": gauge("cache_bytes", "Decoded images and maps of kept images in the cache"),
            "max_cache_bytes": gauge("max_cache_bytes", "Configured limit of featuremaps_cache_bytes"),
            "max_plan_bytes": gauge("max_plans_bytes", "Configured limit of featuremaps_plans_bytes"),
        }
        self._queued = gauge("queued", "Requests that wait for a thread", ["pool"])
        self._plans_kept = gauge("plans_kept", "Compiled parts of networks in memory", ["kind"])
        self._plans_bytes = gauge("plans_bytes", "Estimated bytes of compiled parts", ["kind"])
        self._models = largest("models", "Models by state", ["state"])
        text = "Time to read, check and warm a model"
        self._load_seconds = largest("model_load_seconds", text, ["model", "model_version"])
        self._loaded: set[tuple[str, str]] = set()

    def _define_counters(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, namespace=PREFIX, registry=registry)
        histogram = partial(Histogram, namespace=PREFIX, registry=registry)
        # By the name of the field in `Figures`.
        self._totals = {
            "joined": counter("joined", "Requests answered by the work of an equal one"),
            "cache_hits": counter("cache_hits", "Decoded images and maps of kept images found in the cache"),
            "cache_misses": counter("cache_misses", "Decoded images and maps of kept images computed"),
        }
        text = "Computed answers that were compressed, before and after"
        compressed = counter("compressed_bytes", text, ["side"])
        self._compressed = compressed.labels("before"), compressed.labels("after")
        self._counted: dict[Counter, int] = defaultdict(int)
        text = "Time to compile a part of a network"
        self._builds = Summary("plan_build_seconds", text, ["kind"], namespace=PREFIX, registry=registry)
        self._built: dict[str, Kept] = defaultdict(Kept)
        self._batch_size = histogram("batch_size", "Requests in a shared batch", buckets=BATCH_SIZES)
        self._batch_pixels = histogram("batch_cost_pixels", "Pixels in a shared batch", buckets=BATCH_PIXELS)

    def update(self) -> None:
        """Set every metric to the pipeline's present value."""
        with self._lock:
            figures = self._pipeline.figures()
            for field, gauge in self._numbers.items():
                gauge.set(getattr(figures, field))
            for field, counter in self._totals.items():
                self._count(counter, getattr(figures, field))
            for counter, total in zip(self._compressed, figures.coded, strict=True):
                self._count(counter, total)
            for pool, waiting in figures.queued.items():
                self._queued.labels(pool).set(waiting)
            for kind, kept in figures.plans.items():
                self._update_plans(kind, kept)
            self._update_models(figures)

    def _count(self, counter: Counter, total: int) -> None:
        counter.inc(total - self._counted[counter])
        self._counted[counter] = total

    def _update_plans(self, kind: str, kept: Kept) -> None:
        self._plans_kept.labels(kind).set(kept.count)
        self._plans_bytes.labels(kind).set(kept.bytes)
        builds, built = self._builds.labels(kind), self._built[kind]
        new = kept.builds - built.builds
        for _ in range(new):
            # A summary has a count and a sum, so that the mean serves for each.
            builds.observe((kept.build_seconds - built.build_seconds) / new)
        self._built[kind] = kept

    def _update_models(self, figures: Figures) -> None:
        for state in STATES:
            self._models.labels(state).set(figures.states.get(state, 0))
        for model, seconds in figures.load_seconds.items():
            self._load_seconds.labels(*model).set(seconds)
        for unloaded in self._loaded - figures.load_seconds.keys():
            # Multiprocess mode cannot remove series; only a single process may unload (`allow_admin`).
            self._load_seconds.remove(*unloaded)
        self._loaded = set(figures.load_seconds)

    def _observe_batch(self, requests: int, pixels: int) -> None:
        self._batch_size.observe(requests)
        self._batch_pixels.observe(pixels)
