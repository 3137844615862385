"""The real program in a process of its own, on loopback."""

import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from service.web.keys import make_key

STARTED = re.compile(r"listens on (http://\S+)")


@dataclass
class Server:
    url: str
    pid: int
    log: list[str]
    process: subprocess.Popen[str]
    headers: dict[str, str] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=120, trust_env=False)

    def peak_bytes(self, act: Callable[[], object]) -> int:
        """How many bytes more than before it held at most meanwhile (proc_pid_clear_refs(5))."""
        process = Path("/proc") / str(self.pid)
        (process / "clear_refs").write_text("5")
        before = _status_bytes(process, "VmRSS")
        act()
        return _status_bytes(process, "VmHWM") - before


@contextmanager
def managed(*options: str, **environ: str) -> Iterator[Server]:
    """The same where models may be changed; its clients hold the key."""
    token, line = make_key("tests", "admin")
    with serving("--allow-admin", *options, FEATUREMAPS_KEYS=line, **environ) as server:
        server.headers["Authorization"] = f"Bearer {token}"
        yield server


def _status_bytes(process: Path, name: str) -> int:
    (line,) = [x for x in (process / "status").read_text().splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1]) << 10


@contextmanager
def serving(*options: str, wait: bool = True, cwd: Path | None = None, **environ: str) -> Iterator[Server]:
    """Start `featuremaps serve`, wait until it is ready, and end it by its own pid."""
    scratch = tempfile.TemporaryDirectory()
    given = {"FEATUREMAPS_IMAGE_STORE": f"{scratch.name}/images.sqlite3", "FEATUREMAPS_DRAIN_GRACE_S": "0"}
    environ = {**given, **environ}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEATUREMAPS_")} | environ
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=cwd,
    )
    lines: list[str] = []
    found: queue.Queue[str] = queue.Queue()
    following = threading.Thread(target=_follow, args=(process, lines, found))
    following.start()
    try:
        server = Server(found.get(timeout=60), process.pid, lines, process)
        if not server.url:
            raise RuntimeError("".join(lines))
        if wait:
            _until_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(30)
        following.join()
        scratch.cleanup()


def _follow(process: subprocess.Popen[str], lines: list[str], found: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line)
            if match := STARTED.search(line):
                found.put(match[1])
    found.put("")


def _until_ready(server: Server) -> None:
    end = time.monotonic() + 120
    with server.client() as client:
        while time.monotonic() < end:
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
    raise RuntimeError("not ready:\n" + "".join(server.log))
