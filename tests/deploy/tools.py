"""Programs that check deployments: `make check-deploy` installs them, without it their tests are skipped."""

import os
import subprocess

import pytest

from tests.conftest import ROOT

TOOLS = ROOT / ".venv-deploy/bin"


def run(name: str, *arguments: str, given: str | None = None) -> "subprocess.CompletedProcess[str]":
    """What a tool says."""
    program = TOOLS / name
    if not program.exists():
        pytest.skip(f"no {name}: make check-deploy installs it")
    return subprocess.run(
        [program, *arguments], input=given, cwd=ROOT, capture_output=True, text=True, check=False
    )


def docker(*arguments: str, **environ: str) -> str:
    """What the engine says; a refusal of it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
