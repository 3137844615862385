"""Metrics: each one that the README lists exists and moves, and no client's text becomes a label."""

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from service.web.problems import CODES
from tests.builders import encoded, photograph, put, small_cnn
from tests.servers import Server, serving
from tests.test_readme import rows
from tests.web.inside import Running, Scraped, running, slow_cnn

PREFIX = "featuremaps_"
# What does not move while a service runs undisturbed, with what it then is.
FIXED = {
    "worker_starts_total": 1,
    "build_info": 1,
    "ready": 1,
    "max_in_flight": 3,
    "max_held_bytes": 2 << 30,
    "max_cache_bytes": 256 << 20,
    "max_plans_bytes": 1 << 30,
}
# In `test_visits.py`, where a thread is held for it.
SEEN_ELSEWHERE = {"queued"}
SLOW = "/v1/models/slow/features?layers=last&size=48x48&format=npy"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    put(tmp_path, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    put(tmp_path, "slow", slow_cnn(), toml="[input]\nsize = [16, 16]\n")
    with running(tmp_path, max_in_flight=3, batching="on", load="lazy", image_store="") as service:
        yield service


def client_of(service: Running) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False, timeout=60)


def values(families: dict[str, Metric]) -> dict[str, dict[tuple[str, ...], float]]:
    """By the name that a query uses, without the suffixes of histograms."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in families.values():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        samples = {(s.name, *map(str, sorted(s.labels.items()))): s.value for s in family.samples}
        found[family.name.removesuffix(suffix) + suffix] = samples
    return {name.removeprefix(PREFIX): v for name, v in found.items() if name.startswith(PREFIX)}


def labels(families: dict[str, Metric]) -> dict[str, set[str]]:
    """Those of each metric, but for those of buckets."""
    found: dict[str, set[str]] = {}
    for family in families.values():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        name = family.name.removesuffix(suffix) + suffix
        if name.startswith(PREFIX):
            found[name] = {label for s in family.samples for label in s.labels} - {"le"}
    return found


def documented() -> dict[str, set[str]]:
    """Labels by metric, as the README lists them."""
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("Metrics")}


def use_everything(service: Running, seen: list[dict[str, Metric]]) -> None:
    """One of each thing that is counted; looks in between."""
    image = encoded(photograph(64, 64))
    with client_of(service) as client:
        for layers in ("stem/conv", "stages", "block2.conv"):
            url = f"/v1/models/small/features?layers={layers}&size=256x256"
            assert client.post(url, content=image, headers={"Accept-Encoding": "gzip"}).status_code == 200
        kept = client.post("/v1/images", content=image).json()["id"]
        for _ in range(2):
            client.get(f"/v1/images/{kept}/features?model=small&layers=stem/relu").raise_for_status()
        client.post("/v1/models/absent/features", content=image)
    with service.connect() as leaves, ThreadPoolExecutor(3) as pool:
        leaves.sendall(f"POST {SLOW} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nno".encode())
        for pooled in ("none", "none", "avg"):
            pool.submit(post_slow, service, pooled, image)
        service.until(lambda: service.admission.requests == 3)
        seen.append(service.metrics())


def post_slow(service: Running, pooled: str, image: bytes) -> None:
    with client_of(service) as client:
        client.post(f"{SLOW}&pool={pooled}", content=image).raise_for_status()


def test_every_metric_of_the_readme_exists_and_moves(service: Running) -> None:
    seen = [service.metrics()]
    use_everything(service, seen)
    service.until_idle()
    seen.append(service.metrics())
    told = {name.removeprefix(PREFIX) for name in documented()}
    looks = [values(families) for families in seen]
    assert set(looks[-1]) == told
    moved = {name for name in told if any(look[name] != looks[0][name] for look in looks[1:])}
    assert moved | SEEN_ELSEWHERE == told - set(FIXED)
    assert {name: sum(looks[-1][name].values()) for name in FIXED} == FIXED
    assert labels(seen[-1]) == documented()


@pytest.fixture(scope="module")
def two_workers(repository: Path) -> Iterator[Server]:
    options = ("--workers", "2", "--max-in-flight", "10", "--batching", "on")
    with serving("--models", str(repository), *options) as server:
        until(lambda: Scraped(server.url).metric(f"{PREFIX}ready") == 2)
        yield server


def until(holds: Callable[[], bool]) -> None:
    """Wait: numbers of the worker that does not answer the scrape are up to a second old."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_workers_publish_what_the_readme_lists(two_workers: Server) -> None:
    with two_workers.client() as client:
        client.post("/v1/models/small/features", content=encoded(photograph(32, 32))).raise_for_status()
        client.post("/v1/models/absent/features")
    assert labels(Scraped(two_workers.url).metrics()) == documented()


def test_numbers_of_two_workers_add_up(two_workers: Server) -> None:
    scraped, image = Scraped(two_workers.url), encoded(photograph(64, 64))
    route = {"route": "/v1/models/{model}/features", "status": "200"}
    requests = scraped.metric(f"{PREFIX}requests_total", **route)
    compressed = scraped.metric(f"{PREFIX}compressed_bytes_total", side="before")
    with ExitStack() as stack:
        # All open at one time, so that both workers have some.
        clients = [stack.enter_context(two_workers.client()) for _ in range(16)]
        url = "/v1/models/small/features?layers=stem/conv&format=npy&size=256x256"
        answers = [client.post(url, content=image).raise_for_status() for client in clients]
    assert all("Content-Encoding" in answer.headers for answer in answers)
    compressed += sum(len(answer.content) for answer in answers)
    until(lambda: scraped.metric(f"{PREFIX}compressed_bytes_total", side="before") == compressed)
    # Whichever worker answers.
    assert {scraped.metric(f"{PREFIX}requests_total", **route) for _ in range(16)} == {requests + 16}
    assert scraped.metric(f"{PREFIX}max_in_flight") == 10
    assert scraped.metric(f"{PREFIX}worker_starts_total") == 2
    models = httpx.get(f"{two_workers.url}/v1/models", trust_env=False).json()["models"]
    assert scraped.metric(f"{PREFIX}models") == len(models)


def test_no_text_of_a_client_becomes_a_label(service: Running) -> None:
    with client_of(service) as client:
        client.get("/v1/nothing-PRIVATE", headers={"X-Request-Id": "PRIVATE"})
        client.request("MKCOL", "/v1/models/PRIVATE")
        client.post("/v1/models/PRIVATE/features?layers=PRIVATE", content=b"PRIVATE")
        client.post("/v1/models/small/features?layers=PRIVATE", content=encoded(photograph(32, 32)))
        assert "PRIVATE" not in client.get("/metrics").text
    assert service.metric("featuremaps_requests_total", method="other") == 1
    assert service.metric("featuremaps_requests_total", model="small", status="404") == 1


def test_who_asks_about_a_model_is_counted_under_its_name(service: Running) -> None:
    routes = ("", "/layers", "/filters?layer=stem/relu")
    with client_of(service) as client:
        assert [client.get(f"/v1/models/small{route}").status_code for route in routes] == [200] * 3
    for route in routes:
        asked = {"route": "/v1/models/{model}" + route.partition("?")[0], "model": "small"}
        assert service.metric("featuremaps_requests_total", **asked) == 1


def test_sums_and_counts_are_those_of_the_requests(service: Running) -> None:
    image = encoded(photograph(32, 32))
    with client_of(service) as client:
        sizes = [len(client.post("/v1/models/small/features", content=image).content) for _ in range(3)]
    route = {"route": "/v1/models/{model}/features"}
    assert service.metric("featuremaps_requests_total", status="200", model="small", **route) == 3
    assert service.metric("featuremaps_request_duration_seconds_count", **route) == 3
    assert service.metric("featuremaps_request_bytes_sum") == 3 * len(image)
    assert service.metric("featuremaps_stage_duration_seconds_count", stage="run") == 3
    # The answers of /metrics itself are counted too.
    assert service.metric("featuremaps_response_bytes_sum") > sum(sizes)


def test_openmetrics_is_given_to_who_asks_for_it(service: Running) -> None:
    with client_of(service) as client:
        answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert {f.name for f in openmetrics(answer.text)} >= {"featuremaps_requests", "featuremaps_held_bytes"}


def test_what_has_not_happened_yet_is_told_as_0_so_that_a_rate_sees_the_first(service: Running) -> None:
    families = service.metrics()
    rejected = {s.labels["reason"]: s.value for s in families[f"{PREFIX}rejected"].samples}
    assert rejected.keys() == set(CODES)
    cancelled = {s.labels["stage"]: s.value for s in families[f"{PREFIX}cancelled"].samples}
    assert cancelled == {"sending": 0, "queued": 0, "running": 0, "sending_answer": 0}
    assert not any(rejected.values())
