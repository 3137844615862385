"""The Grafana board: what it asks is what the service tells."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.intake.redis_server import free_port, until
from tests.servers import Server, serving
from tests.test_readme import rows

BOARD = json.loads((ROOT / "deploy/grafana/boards/featuremaps.json").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
PROGRAM = shutil.which("prometheus")
ADDED_BY_PROMETHEUS = {"job", "instance", "le"}
# Nobody leaves, and on a CPU no batch is shared: then there is nothing to show.
EMPTY_HERE = re.compile("featuremaps_(cancelled_total|batch_size)")


def test_every_metric_that_it_shows_is_one_of_the_services(server: Server) -> None:
    told = httpx.get(f"{server.url}/metrics", trust_env=False).text
    families = set(re.findall(r"^# TYPE (\w+)", told, re.MULTILINE))
    asked = {name for query in QUERIES for name in re.findall(r"\b(?:featuremaps|process)_\w+", query)}
    assert len(asked) > 20
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} - families == set()


@pytest.mark.parametrize("query", QUERIES)
def test_every_label_that_it_asks_for_is_one_of_the_metrics(query: str) -> None:
    documented = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("Metrics")}
    known = set()
    for name, selector in re.findall(r"\b(featuremaps_\w+)(?:\{(.*?)\})?", query):
        labels = documented[name if name in documented else re.sub(r"_(bucket|sum|count)$", "", name)]
        assert set(re.findall(r'(\w+)[=!]~?"', selector)) <= labels
        known |= labels
    grouped = re.findall(r"\b(?:by|on) \((.*?)\)", query)
    assert {label for group in grouped for label in group.split(", ")} <= known | ADDED_BY_PROMETHEUS


def test_every_panel_is_on_the_board_alone_in_its_place() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(p["x"] + x, p["y"] + y) for p in places for x in range(p["w"]) for y in range(p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_its_source_is_the_one_that_is_provisioned() -> None:
    (source,) = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    asked = {panel["datasource"]["uid"] for panel in BOARD["panels"] if panel["type"] != "row"}
    assert asked == {source["uid"]}


@pytest.fixture(scope="module")
def prometheus(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one that has watched the service work for a few seconds."""
    if PROGRAM is None:
        pytest.skip("no prometheus: install it to ask the board's questions")
    folder = tmp_path_factory.mktemp("prometheus")
    with serving("--models", str(repository)) as server:
        port = free_port()
        shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        process = subprocess.Popen(
            [PROGRAM, *started(folder, port, watching(shipped, server.url))], stderr=subprocess.DEVNULL
        )
        url = f"http://127.0.0.1:{port}/api/v1"
        try:
            until(lambda: scrapes(url) >= 1, within_s=30)
            work(server)
            seen = scrapes(url)
            until(lambda: scrapes(url) >= seen + 3, within_s=30)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def watching(shipped: dict[str, Any], service: str) -> dict[str, Any]:
    """The configuration with the one service of this test, watched every half second."""
    (job,) = shipped["scrape_configs"]
    static = {"job_name": job["job_name"], "static_configs": [{"targets": [service.removeprefix("http://")]}]}
    return {"global": {"scrape_interval": "500ms"}, "scrape_configs": [static]}


def started(folder: Path, port: int, configuration: dict[str, Any]) -> list[str]:
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration))
    where = f"--storage.tsdb.path={folder / 'numbers'}"
    return [f"--config.file={file}", where, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]


def work(server: Server) -> None:
    """A little of everything: answers, refusals, kept maps, compression, for two seconds."""
    image = encoded(photograph())
    with server.client() as client:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            client.post(
                "/v1/models/small/features", content=image, headers={"Accept-Encoding": "zstd"}
            ).raise_for_status()
            client.get("/v1/models/nothing")
            kept = client.post("/v1/images", content=image).json()["id"]
            for layer in ("block2.add", "stem/relu"):
                client.get(f"/v1/images/{kept}/render?model=small&layer={layer}").raise_for_status()


def ask(url: str, query: str) -> list[Any]:
    answer = httpx.get(f"{url}/query", params={"query": query}, trust_env=False).json()
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


def scrapes(url: str) -> float:
    try:
        found = ask(url, "sum(count_over_time(up[5m]))")
    except (httpx.TransportError, ValueError):
        return 0
    return float(found[0]["value"][1]) if found else 0


@pytest.mark.parametrize("query", QUERIES)
def test_a_real_prometheus_answers_it(prometheus: str, query: str) -> None:
    found = ask(prometheus, query.replace("$__rate_interval", "1m"))
    values = [float(series["value"][1]) for series in found]
    if EMPTY_HERE.search(query):
        assert all(value != value or value >= 0 for value in values)
    else:
        assert values
        assert any(value == value for value in values)
