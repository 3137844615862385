"""The service on Ray Serve. Ray listens on every interface: here loopback is the only one."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.builders import encoded, photograph
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
PROGRAM = ROOT / ".venv-ray/bin/python"
ALONE = ("unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"')


def afternoon(folder: Path, what: str) -> tuple[dict[str, Any], str]:
    """What `ray_afternoon.py` tells, and Ray's own words."""
    if not PROGRAM.exists():
        pytest.skip("no .venv-ray: make check-deploy installs Ray")
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], check=False).returncode:
        pytest.skip("no network of its own can be had here (unshare, ip)")
    (folder / "picture.jpg").write_bytes(encoded(photograph(), "JPEG"))
    done = subprocess.run(
        [*ALONE, str(PROGRAM), str(ROOT / "tests/deploy/ray_afternoon.py"), str(folder), what],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FEATUREMAPS_")},
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    words = done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert told, words
    return json.loads(told[0].removeprefix("TOLD ")), words


def test_a_replica_that_is_killed_under_load_loses_no_request() -> None:
    # Not under pytest's own folder, whose name is too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, words = afternoon(Path(folder), "kill")
    assert told["statuses"].keys() == {"200"}
    assert told["statuses"]["200"] > 20
    # It had work when it was killed, and another one has taken its place.
    assert "will not be considered for future requests because it has died" in words
    assert len(told["before"]) == len(told["after"]) == 2
    assert told["before"][0] not in told["after"]


def test_what_is_too_much_and_a_model_are_refused_in_the_services_own_words() -> None:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        told, _ = afternoon(Path(folder), "refuse")
    assert {(status, retry_after) for status, retry_after, _ in told["crowd"]} == {(200, None), (503, "1")}
    assert "every replica is busy and others wait" in {detail for _, _, detail in told["crowd"]}
    status, _, detail = told["upload"]
    assert (status, "Ray Serve passes no models on" in detail) == (403, True)
