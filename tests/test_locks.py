"""The lock files: what they pin is what pyproject.toml asks for, and they name no place."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCKS = {
    "requirements.lock": ["--extra", "cpu"],
    "requirements-cuda.lock": ["--extra", "cuda"],
    "requirements-dev.lock": ["--extra", "cpu", "--extra", "dev"],
    "tests/zoo/requirements.txt": [
        *("--extra", "cpu", "tests/zoo/requirements.in", "--constraint", "requirements.lock"),
        *("--override", "tests/zoo/overrides.txt"),
    ],
    "deploy/ray/requirements.lock": [
        *("--extra", "cpu", "deploy/ray/requirements.in", "--constraint", "requirements.lock")
    ],
}
FLAGS = [
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-header",
    "--no-annotate",
]


@pytest.mark.parametrize("lock", LOCKS)
def test_compiling_again_with_its_own_pins_changes_nothing(lock: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.lock"
    shutil.copy(ROOT / lock, copy)
    uv = Path(sys.executable).parent / "uv"
    command = [str(uv), "pip", "compile", "--quiet", *FLAGS, "pyproject.toml", *LOCKS[lock], "-o", str(copy)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert copy.read_text() == (ROOT / lock).read_text()


@pytest.mark.parametrize("lock", [*LOCKS, "deploy/checks/requirements.lock"])
def test_a_lock_pins_with_hashes_and_names_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    pins = [line for line in text.splitlines() if "==" in line]
    assert len(pins) > 20
    assert text.count("--hash=sha256:") > len(pins)
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize(
    ("lock", "runtime"), [("requirements.lock", "onnxruntime"), ("requirements-cuda.lock", "onnxruntime-gpu")]
)
def test_a_lock_holds_one_runtime(lock: str, runtime: str) -> None:
    pins = [line.split("==")[0] for line in (ROOT / lock).read_text().splitlines() if "==" in line]
    assert [pin for pin in pins if pin.startswith("onnxruntime")] == [runtime]
