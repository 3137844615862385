"""Several worker processes behind one address: seen as one, replaced when they die, ended together."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import Server, serving
from tests.test_command import featuremaps

FEATURES = "/v1/models/small/features?layers=stem/relu"
WORKERS = ("--workers", "2")
FEW_FILES = 256
STARTED = "Application startup complete."


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    options = (*WORKERS, "--max-in-flight", "10", "--log-format", "json")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, FEW_FILES), hard))
    try:
        with serving("--models", str(repository), *options) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            until(lambda: lines(server, STARTED) == 2)
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def until(holds: Callable[[], bool], within_s: float = 60) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(server: Server, text: str) -> int:
    return sum(text in line for line in server.log)


def workers(server: Server) -> list[psutil.Process]:
    return [process for process in psutil.Process(server.pid).children() if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    """Not multiprocessing's own process, and not one that has just ended."""
    with suppress(psutil.NoSuchProcess):
        return any("spawn_main" in word for word in process.cmdline())
    return False


def test_kept_alive_clients_are_spread_over_the_workers(server: Server) -> None:
    """The log names the process that answered."""
    image = encoded(photograph(32, 32))
    with ExitStack() as stack:
        for number in range(32):
            client: httpx.Client = stack.enter_context(server.client())
            for _ in range(2):
                answer = client.post(FEATURES, content=image, headers={"X-Request-Id": f"spread{number}"})
                assert answer.status_code == 200
    until(lambda: lines(server, '"request_id": "spread') == 64)
    told = [json.loads(line) for line in server.log if '"request_id": "spread' in line]
    counts = Counter(line["worker"] for line in told)
    assert set(counts) == {process.pid for process in workers(server)}
    # Chance gives fewer once in ten thousand times.
    assert min(counts.values()) >= 10


def test_a_worker_that_dies_three_times_is_replaced_and_the_other_goes_on(server: Server) -> None:
    image = encoded(photograph(32, 32))
    stays, dies = workers(server)
    for _ in range(3):
        started = lines(server, STARTED)
        dies.kill()
        until(lambda: len(workers(server)) == 2 and dies not in workers(server))  # noqa: B023
        until(lambda: lines(server, STARTED) == started + 1)  # noqa: B023
        with server.client() as client:
            assert client.post(FEATURES, content=image).status_code == 200
        (dies,) = [process for process in workers(server) if process != stays]
    assert stays in workers(server)
    assert lines(server, "ended with status -9 and is replaced") == 3


def test_metrics_are_those_of_all_workers_also_of_one_that_died(server: Server) -> None:
    """The workers that answered before, some of which were killed, answered 64 and 3 requests for maps."""
    until(lambda: look(server)["featuremaps_ready"] == 2)
    found = look(server)
    assert found["featuremaps_requests_total"] >= 64
    assert found["featuremaps_worker_starts_total"] == 5
    assert found["featuremaps_max_in_flight"] == 10
    assert found["featuremaps_max_held_bytes"] == 2 << 30
    assert found["featuremaps_max_plans_bytes"] == 1 << 30


def test_scrapes_add_no_samples(server: Server) -> None:
    def samples() -> list[str]:
        text = httpx.get(f"{server.url}/metrics", trust_env=False).text
        return sorted(line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#"))

    for _ in range(8):
        samples()
    found = samples()
    assert len(found) == len(set(found))
    assert len([name for name in found if name.startswith("featuremaps_build_info{")]) == 1


def look(server: Server) -> dict[str, float]:
    """Samples of all workers by name, added up."""
    found: Counter[str] = Counter()
    with server.client() as client:
        text = client.get("/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] += sample.value  # type: ignore[assignment]
    return dict(found)


def test_every_process_may_open_as_many_files_as_the_system_allows(server: Server) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    every = (psutil.Process(server.pid), *workers(server))
    assert [process.rlimit(psutil.RLIMIT_NOFILE) for process in every] == [(hard, hard)] * 3


def test_a_worker_that_does_not_respond_for_a_while_is_kept(server: Server) -> None:
    """As one that reads a model of 500 MB, which keeps its other threads waiting; uvicorn would kill it."""
    before = workers(server)
    before[0].suspend()
    time.sleep(6)
    assert workers(server) == before
    before[0].resume()


def test_workers_share_a_folder_for_metrics_that_ends_with_the_service(repository: Path) -> None:
    with serving("--models", str(repository), *WORKERS) as server:
        folders = {process.environ()["PROMETHEUS_MULTIPROC_DIR"] for process in workers(server)}
        (folder,) = map(Path, folders)
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_setting_that_no_worker_can_start_with_ends_them_all() -> None:
    done = featuremaps("serve", "--port", "0", *WORKERS, "--models", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.count(b"/nowhere is neither a repository folder nor an .onnx file") == 1
    assert b"Traceback" not in done.stderr


def test_a_port_in_use_is_reported_once(server: Server, repository: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    done = featuremaps("serve", "--port", port, *WORKERS, "--models", repository)
    assert done.returncode == 2
    assert done.stderr.count(f"cannot listen on 127.0.0.1 port {port}".encode()) == 1


def test_without_their_supervisor_workers_end_and_free_the_port(repository: Path) -> None:
    with serving("--models", str(repository), *WORKERS) as server:
        until(lambda: lines(server, STARTED) == 2)
        left = workers(server)
        folder = Path(left[0].environ()["PROMETHEUS_MULTIPROC_DIR"])
        server.process.kill()
        until(lambda: not any(process.is_running() for process in left), within_s=5)
        with socket.create_server(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))):
            pass
    assert len(left) == 2
    assert not folder.exists()


def test_a_worker_that_hangs_is_killed_when_grace_and_deadline_are_over(repository: Path) -> None:
    options = ("--models", str(repository), "--max-timeout-s", "1", *WORKERS)
    with serving(*options) as server:
        until(lambda: lines(server, STARTED) == 2)
        workers(server)[0].suspend()
        server.process.terminate()
        assert server.process.wait(20) == 0
    assert lines(server, "workers that do not end are killed") == 1


@pytest.mark.parametrize("started", [0, 2], ids=["while workers start", "while they serve"])
def test_ctrl_c_ends_all_processes_without_a_grace(repository: Path, started: int) -> None:
    """The terminal sends the signal to all processes of its group."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", *WORKERS, "--models", str(repository)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "FEATUREMAPS_DRAIN_GRACE_S": "600"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stderr is not None
    with process.stderr as log:
        seen = log.readline()
        while seen.count(STARTED) < started:
            seen += log.readline()
        os.killpg(process.pid, signal.SIGINT)
        rest = log.read()
    assert process.wait(30) == 0
    assert not re.search("Traceback|killed", rest)
