"""The load generators of the README's section "Measuring" measure the real service."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.deploy.tools import TOOLS
from tests.servers import Server, serving

SECTION = (ROOT / "README.md").read_text().partition("\n## Measuring\n")[2].partition("\n## ")[0]
COMMANDS = "".join(re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)).splitlines()
ADDRESS = "127.0.0.1:8000"
# The documented lengths of a measurement, shortened for a test.
SHORT = {"-d30s": "-d1s", "--request-count 500": "--request-count 60"}
CUDA_RUNTIME = next(ROOT.glob(".venv-deploy/lib/python3*/site-packages/nvidia/cuda_runtime/lib"), None)


@pytest.fixture(scope="module")
def bundled() -> Iterator[Server]:
    with serving("--models", str(ROOT / "models")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are typed: a copy of the examples, an image, and what the commands write."""
    folder = tmp_path_factory.mktemp("measuring")
    shutil.copytree(ROOT / "deploy/examples", folder / "deploy/examples")
    (folder / "photo.jpg").write_bytes(encoded(photograph(320, 240), "JPEG"))
    return folder


def output(command: str, server: Server, folder: Path) -> str:
    """Run a documented command for about a second and return what it prints."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{TOOLS}"}
    if CUDA_RUNTIME is not None:
        environment["LD_LIBRARY_PATH"] = str(CUDA_RUNTIME)
    if shutil.which(command.split()[0], path=environment["PATH"]) is None:
        pytest.skip(f"no {command.split()[0]}: .ci/run and make check-deploy install it")
    for documented, short in SHORT.items():
        command = command.replace(documented, short)
    done = subprocess.run(
        command.replace(ADDRESS, server.url.removeprefix("http://")),
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if "libb64.so.0d: cannot open" in done.stderr:
        pytest.skip("perf_analyzer needs libb64: .ci/run installs it")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(program: str) -> list[str]:
    found = [line for line in COMMANDS if line.startswith(f"{program} ")]
    assert found, program
    return found


def test_every_command_is_of_a_tested_program() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"wrk", "python3", "perf_analyzer", "curl"}


@pytest.mark.parametrize("command", commands("wrk"))
def test_wrk_counts_answers_and_no_refusals(command: str, bundled: Server, folder: Path) -> None:
    told = output(command, bundled, folder)
    answers = re.search(r"^ +(\d+) requests in ", told, re.MULTILINE)
    assert answers, told
    assert int(answers[1]) > 0
    assert "Non-2xx or 3xx responses" not in told


@pytest.mark.parametrize("command", commands("perf_analyzer"))
def test_perf_analyzer_measures_runs_of_different_inputs(command: str, bundled: Server, folder: Path) -> None:
    (inputs,) = commands("python3")
    output(inputs, bundled, folder)
    told = output(command, bundled, folder)
    counts = {name: int(n) for name, n in re.findall(r"(Request|Execution) count: (\d+)", told)}
    assert counts["Request"] >= 60, told
    # Requests that the service coalesced would have no run of their own.
    assert counts["Execution"] >= counts["Request"] - 2, told


def test_curl_shows_the_stages(bundled: Server, folder: Path) -> None:
    (command,) = commands("curl")
    told = output(command, bundled, folder)
    assert re.fullmatch(r"total [\d.]+ s, stages in ms: .*decode;dur=[\d.]+.*run;dur=[\d.]+.*\n", told)
    assert (folder / "maps.npz").read_bytes().startswith(b"PK")
