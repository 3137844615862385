"""A mixed load with slow readers and leaving callers: the service stays, and its memory too."""

import time

import numpy as np
import psutil
import pytest

from benchmarks.memory import MB, slope
from benchmarks.soak import MIX, REST_S, measure, report
from service.engine.plan_cache import FUSE_AFTER
from tests.builders import encoded, photograph
from tests.servers import serving

# What two minutes may add at rest while allocators and caches still fill: about three of the largest answers.
# Of every kind of answer some megabytes were given dozens of times by then, so a leak of one kind is more.
MOST_GROWTH_MB = 150
# One run of the largest of these sizes takes more than a hundred.
MOST_HELD_MB = 60


@pytest.mark.parametrize("seconds", [6, pytest.param(120, marks=pytest.mark.slow)])
def test_a_mixed_load_leaves_the_service_as_it_was(seconds: float) -> None:
    found = measure(seconds)
    told = report(found)
    print(told)
    assert not found.surprises, told
    assert found.same_afterwards
    assert sum(counts.total() for counts in found.counts.values()) > 2 * seconds
    if seconds > 60:
        assert all(found.counts[kind.name] for kind in MIX), told
        rests = [value / MB for _, value in found.rests]
        assert rests[-1] - rests[len(rests) // 4] < MOST_GROWTH_MB, told


def test_what_large_maps_needed_is_given_back_when_nobody_comes() -> None:
    sets = ("stage:0", "stage:1")
    image = encoded(photograph(64, 64), "PNG")
    with serving() as server, server.client() as client:

        def ask(size: int) -> None:
            for layers in sets * (FUSE_AFTER + 1):
                given = {"layers": layers, "size": f"{size}x{size}", "format": "safetensors"}
                url = "/v1/models/cifar-resnet/features"
                client.post(url, params=given, content=image).raise_for_status()

        ask(64)
        time.sleep(REST_S)
        before = psutil.Process(server.pid).memory_info().rss
        ask(600)
        time.sleep(REST_S)
        assert psutil.Process(server.pid).memory_info().rss - before < MOST_HELD_MB * MB


@pytest.mark.parametrize("mb_per_hour", [0.0, 360.0])
def test_growth_is_told_from_noise(mb_per_hour: float) -> None:
    rng = np.random.default_rng(0)
    noise, samples = 0.0, []
    for second in range(400):
        noise = 0.8 * noise + rng.normal(0, MB)
        # What happens in the first quarter is no growth.
        warming = -50 * MB if second < 90 else 0.0
        samples.append((float(second), 500 * MB + mb_per_hour * MB * second / 3600 + noise + warming))
    found = slope(samples)
    assert found.within_noise == (mb_per_hour == 0)
    assert abs(found.mb_per_hour - mb_per_hour) <= 3 * found.error
    assert found.seconds == pytest.approx(300, abs=2)
    # 300 of 400 s, so 30 MB of 40, less what noise may have added.
    assert 15 * (mb_per_hour > 0) <= found.least_growth_mb <= mb_per_hour / 12


def test_too_few_samples_say_nothing() -> None:
    assert slope([(0.0, 1e6), (1.0, 2e6)]).within_noise


def test_every_kind_of_the_mix_has_a_name_of_its_own() -> None:
    assert len({kind.name for kind in MIX}) == len(MIX)
