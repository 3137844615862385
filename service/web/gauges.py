"""The pipeline's figures as families of metrics, read when somebody asks."""

from collections.abc import Iterable, Mapping

from prometheus_client.metrics_core import Metric

from service.engine.plan_cache import Kept
from service.pipeline.figures import Distribution, Figures
from service.web.families import counter, counters, gauge, gauges, histograms, summaries

STATES = ("unloaded", "loading", "ready", "failed")


def inside(figures: Figures) -> Iterable[Metric]:
    """Every family of what a pipeline counts."""
    yield from _requests(figures)
    yield from _plans(figures.plans, figures.max_plan_bytes)
    yield counter("cache_hits", "Pictures and maps of kept images at hand", figures.cache_hits)
    yield counter("cache_misses", "Pictures and maps of kept images made", figures.cache_misses)
    yield gauge("cache_bytes", "Pictures and maps of kept images held", figures.cache_bytes)
    yield gauge("max_cache_bytes", "As many as are held", figures.max_cache_bytes)
    states = [([state], figures.states.get(state, 0)) for state in STATES]
    yield gauges("models", "Models by state", ["state"], states)
    loads = [([m.name, m.version], m.load_seconds) for m in figures.models]
    text = "Reading, checking and warming a model"
    yield gauges("model_load_seconds", text, ["model", "model_version"], loads)
    yield histograms("batch_size", "Requests in a shared batch", [], _of(figures.batch_sizes))
    yield histograms("batch_cost_pixels", "Pixels in a shared batch", [], _of(figures.batch_pixels))


def _requests(figures: Figures) -> Iterable[Metric]:
    yield gauge("in_flight", "Requests worked on or waiting", figures.requests)
    yield gauge("max_in_flight", "As many as are taken", figures.max_requests)
    yield gauge("held_bytes", "Bodies, pictures, maps and answers of all requests", figures.held_bytes)
    yield gauge("max_held_bytes", "As many as are held", figures.max_held_bytes)
    queued = [([stage], count) for stage, count in figures.queued.items()]
    yield gauges("queued", "Requests that wait for a thread of a pool", ["pool"], queued)
    yield counter("joined", "Requests answered by an equal one's work", figures.joined)
    before, after = figures.coded
    coded = [(["before"], before), (["after"], after)]
    yield counters(
        "compressed_bytes", "Computed answers that were compressed, before and after", ["side"], coded
    )


def _plans(plans: Mapping[str, Kept], max_bytes: int) -> Iterable[Metric]:
    kinds, kept = ["kind"], plans.items()
    yield gauges("plans_kept", "Compiled parts of networks", kinds, [([k], p.count) for k, p in kept])
    yield gauges("plans_bytes", "Their estimated bytes", kinds, [([k], p.bytes) for k, p in kept])
    yield gauge("max_plans_bytes", "As many as are kept", max_bytes)
    built = [([kind], p.builds, p.build_seconds) for kind, p in kept]
    yield summaries("plan_build_seconds", "Compiling a part of a network", kinds, built)


def _of(seen: Distribution | None) -> Iterable[tuple[list[str], Distribution]]:
    """No rows where there are no batches."""
    return [] if seen is None else [([], seen)]
