"""The unit for systemd, checked by systemd itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from service.app import default_store
from service.settings import PREFIX, Settings
from tests.conftest import ROOT

UNIT = ROOT / "deploy/featuremaps.service"
LINES = [line.partition("=")[::2] for line in UNIT.read_text().splitlines()]
ENVIRONMENT = dict(
    variable.split("=", 1) for name, value in LINES if name == "Environment" for variable in value.split()
)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if (systemd := shutil.which("systemd-analyze")) is None:
        pytest.skip("no systemd-analyze: install systemd to check the unit")
    # Verifying looks whether the command is there.
    text = UNIT.read_text().replace("/opt/featuremaps/bin/featuremaps", "/bin/true")
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run([systemd, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_it_waits_longer_than_an_end_may_take() -> None:
    defaults = Settings()
    (seconds,) = [float(value) for name, value in LINES if name == "TimeoutStopSec"]
    assert seconds > defaults.drain_grace_s + defaults.max_timeout_s


def test_no_setting_of_the_unit_wins_over_the_file_of_settings() -> None:
    assert [name for name in ENVIRONMENT if name.startswith(PREFIX)] == []


def test_images_are_kept_in_its_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (state,) = [value for name, value in LINES if name == "StateDirectory"]
    assert default_store() == Path("/var/lib", state, "images.sqlite3")
