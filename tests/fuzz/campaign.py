"""schemathesis against a running service: a number of cases for each operation, from a fixed seed."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.fuzz.hooks import IMAGES
from tests.servers import Server

HERE = Path(__file__).parent
COUNT = re.compile(r"^\s*(\d+) generated", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """What a campaign found: how many cases, whether all were right, and what schemathesis said."""

    cases: int
    passed: bool
    report: str


def campaign(server: Server, *options: str, folder: Path, seed: int = 1) -> Outcome:
    """Ask every operation of the document; `options` are schemathesis' own, `folder` holds what it writes."""
    with server.client() as client:
        kept = client.post("/v1/images", content=IMAGES[0]).raise_for_status().json()["id"]
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "--config-file",
        str(HERE / "schemathesis.toml"),
    ]
    command += ["run", f"{server.url}/openapi.json", "--seed", str(seed), "--continue-on-failure", *options]
    environment = {
        **os.environ,
        "FUZZ_IMAGE_ID": kept,
        "PYTHONPATH": str(ROOT),
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = COUNT.search(done.stdout)
    cases = int(found[1]) if found else 0
    return Outcome(
        cases, done.returncode == 0 and "a bug of ours" not in "".join(server.log), done.stdout + done.stderr
    )
