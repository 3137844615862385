"""Several worker processes behind one socket: even, seen as one, replaced when they die."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
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
FEW_FILES = 256
# Root may have any number of descriptors under way, other users as many as they may have open files.
ORDINARY = ("unshare", "--map-root-user") if os.geteuid() == 0 else ()
# A worker that takes nothing is handed one connection after another until there is no room.
HANDING = """
import os, resource, signal, socket, tempfile
from pathlib import Path
from service.cli.workers import Worker
from service.settings import Settings

with tempfile.TemporaryDirectory() as folder, socket.socket() as connection:
    worker = Worker(0, Settings(), Path(folder))
    worker.start()
    os.kill(worker.process.pid, signal.SIGSTOP)
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
    try:
        print(next(count for count in range(10_000) if not worker.hand(connection)))
    finally:
        worker.process.kill()
        worker.bury()
"""


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    options = ("--workers", "2", "--max-in-flight", "10", "--log-format", "json")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, FEW_FILES), hard))
    try:
        with serving("--models", str(repository), *options) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            until(server, lambda found: found["featuremaps_ready"] == 2)
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def look(server: Server) -> dict[str, float]:
    """Samples of all workers by name, added up."""
    found: dict[str, float] = {}
    with server.client() as client:
        text = client.get("/metrics").text
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            found[s.name] = found.get(s.name, 0) + s.value
    return found


def until(server: Server, holds: object) -> None:
    end = time.monotonic() + 60
    while not holds(look(server)):  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def answered(server: Server) -> Counter[int]:
    """By worker, how many requests for maps the log tells."""
    return Counter(json.loads(line)["worker"] for line in server.log if '"method": "POST"' in line)


def test_kept_alive_clients_are_spread_evenly_and_their_requests_add_up(server: Server) -> None:
    image = encoded(photograph(32, 32))
    with ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(8)]
        for client in clients * 5:
            assert client.post(FEATURES, content=image).status_code == 200
    # Other connections, such as those of this test's looks, come and go between them.
    until(server, lambda _: answered(server).total() == 40)
    assert min(answered(server)[worker] for worker in (0, 1)) >= 15


def test_being_asked_for_metrics_adds_nothing_to_them(server: Server) -> None:
    """Each answer once grew by what the other workers had answered before."""

    def samples() -> list[str]:
        text = httpx.get(f"{server.url}/metrics", trust_env=False).text
        return sorted(line.rsplit(" ", 1)[0] for line in text.splitlines() if not line.startswith("#"))

    for _ in range(8):
        samples()
    found = samples()
    assert len(found) == len(set(found))
    assert len([name for name in found if name.startswith("featuremaps_build_info{")]) == 1


def test_places_and_bytes_are_divided_and_add_up(server: Server) -> None:
    found = look(server)
    assert found["featuremaps_max_in_flight"] == 10
    assert found["featuremaps_max_held_bytes"] == 2 << 30
    assert found["featuremaps_max_plans_bytes"] == 1 << 30


def test_the_log_names_the_worker(server: Server) -> None:
    # More than two, since a connection that has just ended may still count for its worker.
    with ExitStack() as stack:
        for i in range(6):
            client: httpx.Client = stack.enter_context(server.client())
            client.get("/livez", headers={"X-Request-Id": f"asked{i}"})
    end = time.monotonic() + 10
    while len(told := [line for line in server.log if '"request_id": "asked' in line]) < 6:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert {json.loads(line)["worker"] for line in told} == {0, 1}


def test_a_worker_that_dies_is_replaced_and_the_service_goes_on(server: Server) -> None:
    image = encoded(photograph(32, 32))
    before = pids(server)
    os.kill(before["1"], signal.SIGKILL)
    until(server, lambda found: found["featuremaps_worker_starts_total"] == 3)
    with server.client() as client:
        assert client.post(FEATURES, content=image).status_code == 200
    until(server, lambda found: found["featuremaps_ready"] == 2)
    after = pids(server)
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
    assert any("worker 1 ended with status -9 and is replaced" in line for line in server.log)


def test_every_process_may_open_as_many_files_as_the_system_allows(server: Server) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    every = (server.pid, *pids(server).values())
    limits = [psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE) for pid in every]
    assert limits == [(hard, hard)] * 3


def test_a_system_that_lets_no_more_be_handed_over_is_no_error() -> None:
    if ORDINARY and (not shutil.which(ORDINARY[0]) or subprocess.run([*ORDINARY, "true"]).returncode):
        pytest.skip("root, and no user without root's rights can be had here (unshare)")
    done = subprocess.run(
        [*ORDINARY, sys.executable, "-c", HANDING],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    # Far fewer than the channel itself has room for.
    assert (done.returncode, int(done.stdout or 0) <= 21) == (0, True), done.stderr


def test_a_setting_that_no_worker_can_start_with_ends_them_all() -> None:
    done = featuremaps("serve", "--port", "0", "--workers", "2", "--models", "/nowhere")
    assert done.returncode == 2
    assert b"/nowhere is neither a repository folder nor an .onnx file" in done.stderr


def test_without_their_supervisor_workers_end(repository: Path) -> None:
    with serving("--models", str(repository), "--workers", "2") as server:
        left = [Path(f"/proc/{pid}") for pid in pids(server).values()]
        server.process.kill()
        end = time.monotonic() + 30
        while any(process.exists() for process in left):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert len(left) == 2


def pids(server: Server) -> dict[str, int]:
    """Of each worker, as the operating system lists them."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == server.pid and b"service.cli.worker" in words:
                found[words[words.index(b"service.cli.worker") + 2].decode()] = int(process.name)
    return found
