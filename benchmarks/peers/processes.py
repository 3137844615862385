"""Starting a server in a virtual environment of its own, what its processes use, and ending all of them."""

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.entrants import Peer
from tests.servers import serving

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".venv-peers"
QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "1",
}
# glibc keeps what is freed: an answer's 0.8 MB are else mapped and unmapped anew each time.
KEPT_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
START_S, STOP_S = 120, 5
IDLE_CORES = 0.3


@dataclass
class Server:
    """A server that answers: where, its first process, and seconds from its start to the first answer."""

    host: str
    path: str
    pid: int
    first_s: float
    body: bytes

    @property
    def url(self) -> str:
        return f"http://{self.host}{self.path}"

    def tree(self) -> list[psutil.Process]:
        return family(self.pid)


def family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Of those that still run."""
    used = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    return used


def settle(server: Server) -> None:
    """Until it works no more on what a client has left: else the next load waits behind that."""
    end = time.monotonic() + STOP_S * 4
    while time.monotonic() < end:
        processes = server.tree()
        before = cpu_seconds(processes)
        time.sleep(0.2)
        if cpu_seconds(processes) - before < IDLE_CORES * 0.2:
            return


def memory_mb(processes: list[psutil.Process]) -> tuple[float, float]:
    """Resident, and with shared pages counted once (PSS)."""
    resident = proportional = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found = process.memory_full_info()
            resident, proportional = resident + found.rss, proportional + found.pss
    return resident / 1e6, proportional / 1e6


def python(venv: str) -> Path:
    """The virtual environment's interpreter; made once for a lock file."""
    folder, lock = VENVS / venv, Path(__file__).parent / f"requirements-{venv}.txt"
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != lock.read_text():
        VENVS.mkdir(exist_ok=True)
        (VENVS / ".gitignore").write_text("*\n")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True)
        stamp.write_text(lock.read_text())
    return folder / "bin" / "python"


@contextmanager
def started(peer: Peer, model: Path, layer: str, image: bytes, kept: bool) -> Iterator[Server]:
    """A peer that serves `model`, until the block ends."""
    port, interpreter = _free_port(), python(peer.venv)
    arguments = [part.format(port=port) for part in peer.command]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        log = stack.enter_context(Path(folder, "log").open("w"))
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(interpreter), *arguments],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=_environment(peer, model, port, folder, kept),
        )
        try:
            path = "/predict?" + urllib.parse.urlencode({"layer": layer})
            host = f"127.0.0.1:{port}"
            body = _first_answer(process.pid, host, path, image)
            yield Server(host, path, process.pid, time.perf_counter() - start, body)
        except Exception as error:
            error.add_note(Path(folder, "log").read_text()[-3000:])
            raise
        finally:
            _end(process)


@contextmanager
def ourselves(models: Path, layer: str, image: bytes, kept: bool) -> Iterator[Server]:
    """featuremaps as it comes, on a model repository."""
    start = time.perf_counter()
    with serving("--models", str(models), **(KEPT_MEMORY if kept else {})) as server:
        path = "/v1/models/resnet50/features?" + urllib.parse.urlencode({"layers": layer, "format": "npy"})
        host = server.url.removeprefix("http://")
        body = _first_answer(server.pid, host, path, image)
        yield Server(host, path, server.pid, time.perf_counter() - start, body)


def _environment(peer: Peer, model: Path, port: int, folder: str, kept: bool) -> dict[str, str]:
    told = {
        "PEER_MODEL": str(model),
        "PEER_PORT": str(port),
        "PEER_WORKERS": str(peer.workers),
        "PEER_JOBS": str(peer.jobs),
        "PEER_FOLDER": f"{folder}/r",
        "BENTOML_HOME": f"{folder}/b",
    }
    return {**os.environ, **QUIET, **told, **peer.environment, **(KEPT_MEMORY if kept else {})}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _first_answer(pid: int, host: str, path: str, image: bytes) -> bytes:
    end, last = time.monotonic() + START_S, ""
    while time.monotonic() < end and psutil.pid_exists(pid):
        try:
            client = http.client.HTTPConnection(host, timeout=START_S)
            client.request("POST", path, image, {"Content-Type": "image/jpeg"})
            answer = client.getresponse()
            body = answer.read()
            if answer.status == 200:
                return body
            last = f"{answer.status} {body[:500]!r}"
        except (OSError, http.client.HTTPException) as error:
            last = str(error)
        finally:
            client.close()
        time.sleep(0.05)
    raise RuntimeError(f"does not answer: {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """The first process first; what it leaves behind afterwards, by pid."""
    processes = family(process.pid)
    process.terminate()
    _, left = psutil.wait_procs(processes, timeout=STOP_S)
    for each in left:
        each.terminate()
    _, left = psutil.wait_procs(left, timeout=STOP_S)
    for each in left:
        each.kill()
    process.wait(STOP_S)
