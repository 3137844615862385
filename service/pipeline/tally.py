"""How often each version of a model was asked and run, and how long that took."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from service.values import Identity

# Which of a request's stages count as which of the v2 protocol's.
STAGES = {
    "queue": ("queue",),
    "compute_input": ("decode", "preprocess"),
    "compute_infer": ("run",),
    "compute_output": ("reduce", "encode", "compress"),
}


@dataclass
class Total:
    """How often something happened, and seconds of all together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Once more."""
        self.count += 1
        self.seconds += seconds


def _sum(totals: Iterable[Total]) -> Total:
    both = [(total.count, total.seconds) for total in totals]
    return Total(sum(count for count, _ in both), sum(seconds for _, seconds in both))


def _stages() -> dict[str, Total]:
    return {stage: Total() for stage in STAGES}


@dataclass
class Tally:
    """Of one version of a model; `batches` by how many images ran together."""

    last_inference_ms: int = 0
    images: int = 0
    runs: int = 0
    succeeded: Total = field(default_factory=Total)
    failed: Total = field(default_factory=Total)
    batches: dict[int, dict[str, Total]] = field(default_factory=dict)

    @property
    def stages(self) -> Mapping[str, Total]:
        """Of all batches together."""
        return {stage: _sum(totals[stage] for totals in self.batches.values()) for stage in STAGES}


@dataclass
class Count:
    """What one request counts for."""

    images: int = 0


class Tallies:
    """One a version, since the process began. Lives on the event loop alone, so it needs no lock."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def of(self, name: str, version: str) -> Tally:
        """What was counted of a version."""
        if (name, version) not in self._tallies:
            self._tallies[name, version] = Tally()
        return self._tallies[name, version]

    @contextmanager
    def counting(self, model: Identity) -> Iterator["Count"]:
        """One request: answered, for as many images as the block sets, or failed by what it raises."""
        tally, start, count = self.of(model.name, model.version), time.perf_counter(), Count()
        try:
            yield count
        except BaseException:
            tally.failed.add(time.perf_counter() - start)
            raise
        tally.succeeded.add(time.perf_counter() - start)
        tally.images += count.images
        tally.last_inference_ms = round(time.time() * 1000)

    def ran(self, model: Identity, images: int, seconds: Mapping[str, float]) -> None:
        """A network ran; requests that ask the same share one run."""
        tally = self.of(model.name, model.version)
        tally.runs += 1
        if images not in tally.batches:
            tally.batches[images] = _stages()
        for stage, parts in STAGES.items():
            tally.batches[images][stage].add(sum([seconds[part] for part in parts if part in seconds]))
