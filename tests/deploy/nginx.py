"""The proxy as it is shipped, run by a real nginx on loopback."""

import getpass
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.intake.redis_server import free_port, until

CONFIGURATION = ROOT / "deploy/nginx/nginx.conf"
PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin:/opt/homebrew/bin")
ADDRESSES = ("server featuremaps:8000;", "listen 8080;", "/tmp/", "/var/cache/nginx/")


@contextmanager
def proxying(service: str, folder: Path, **faster: str) -> Iterator[str]:
    """The proxy's URL. Only places and the times that are named change, as in send_timeout="1s"."""
    if PROGRAM is None:
        pytest.skip("no nginx: install it (Debian: nginx-light) to test the proxy")
    port = free_port()
    (folder / "cache").mkdir(parents=True)
    configuration = folder / "nginx.conf"
    configuration.write_text(_configured(service, folder, port, faster))
    command = [PROGRAM, "-c", str(configuration), "-g", f"daemon off; user {getpass.getuser()};"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(url))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _configured(service: str, folder: Path, port: int, faster: dict[str, str]) -> str:
    text = CONFIGURATION.read_text()
    places = (
        f"server {service.removeprefix('http://')};",
        f"listen 127.0.0.1:{port};",
        f"{folder}/",
        f"{folder}/cache/",
    )
    for shipped, here in zip(ADDRESSES, places, strict=True):
        assert shipped in text
        text = text.replace(shipped, here)
    for name, time in faster.items():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name} ")]
        text = text.replace(line, f"{name} {time};")
    return text


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", trust_env=False).status_code > 0
    except httpx.TransportError:
        return False
