"""Numbers as families of Prometheus metrics: one prefix, one way to write each kind."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain

import orjson
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.pipeline.figures import Distribution

PREFIX = "featuremaps"
# The values of its labels, and what is told of them.
Row = tuple[Sequence[str], float]


def gauge(name: str, text: str, value: float) -> Metric:
    """A number that goes up and down."""
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value)


def gauges(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """One for each row."""
    return _filled(GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels), rows)


def counter(name: str, text: str, value: float) -> Metric:
    """A number that only grows; `_total` is added to its name."""
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value)


def counters(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """One for each row."""
    return _filled(CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels), rows)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Row]) -> Metric:
    for of, value in rows:
        family.add_metric(of, value)
    return family


def histograms(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Distribution]]
) -> Metric:
    """A distribution for each row."""
    family = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for of, seen in rows:
        bounds = [*(str(float(bound)) for bound in seen.bounds), "+Inf"]
        counted = accumulate(tuple(seen.counts))
        family.add_metric(of, list(zip(bounds, counted, strict=True)), seen.sum)
    return family


def summaries(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], int, float]]
) -> Metric:
    """A count and a sum for each row."""
    family = SummaryMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for of, count, total in rows:
        family.add_metric(of, count, total)
    return family


def info(name: str, text: str, labels: Mapping[str, str]) -> Metric:
    """What does not change, as labels of a one."""
    return InfoMetricFamily(f"{PREFIX}_{name}", text, dict(labels))


def labelled(family: Metric, **labels: str) -> Metric:
    """A copy whose samples have more labels: some collectors give the same object each time."""
    copy = Metric(family.name, family.documentation, family.type)
    copy.samples = [sample._replace(labels={**sample.labels, **labels}) for sample in family.samples]
    return copy


def dump(families: Iterable[Metric]) -> bytes:
    """Families as JSON, for `Joined`."""
    told = [
        [f.name, f.documentation, f.type, [[s.name, s.labels, s.value] for s in f.samples]] for f in families
    ]
    return orjson.dumps(told)


class Joined(Collector):
    """Families of one worker with the samples of others' added to them, family by family."""

    def __init__(self, families: Iterable[Metric], dumps: Iterable[bytes]) -> None:
        self._families = {family.name: family for family in families}
        for name, text, kind, samples in chain.from_iterable(map(orjson.loads, dumps)):
            family = self._families.setdefault(name, Metric(name, text, kind))
            family.samples.extend(Sample(*sample) for sample in samples)

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return self._families.values()
