"""A real Redis on loopback that a test may end and start again."""

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

PROGRAM = shutil.which("redis-server", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin") or shutil.which(
    "redis-server"
)


def until(happens: Callable[[], bool], within_s: float = 10.0) -> None:
    """Poll until it happens, and fail after `within_s`."""
    end = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class RedisServer:
    """`admin` is another client, for what only the operator does or sees."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = folder / "redis.sock"
        self.admin = redis.Redis(port=self.port)
        self._options = (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--save", "", "--appendonly", "no", "--dir", str(folder), *options),
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert PROGRAM is not None
        self._process = subprocess.Popen([PROGRAM, *self._options], stdout=subprocess.DEVNULL)
        until(self._answers)

    def stop(self) -> None:
        self.admin.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) != b""  # PONG, or an error that asks for the password
        except OSError:
            return False
