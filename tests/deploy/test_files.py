"""What is written down for engines is what they take, and what it names is there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from service.settings import Settings
from tests.conftest import ROOT
from tests.deploy.tools import run

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


@pytest.mark.parametrize("file", ["Dockerfile", "deploy/checks/stand-in.Dockerfile"])
def test_hadolint_has_nothing_to_say(file: str) -> None:
    done = run("hadolint", file)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_follows_its_schema() -> None:
    done = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert done.returncode == 0, done.stdout


def test_every_service_of_the_compose_file_is_confined() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service.get("healthcheck") or name == "featuremaps", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_the_files_that_it_mounts_are_there() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    for mount in mounts:
        if mount.startswith("./"):
            assert (ROOT / mount.partition(":")[0]).exists(), mount


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "deploy/kserve/serving-runtime.yaml"])
def test_the_settings_that_it_makes_exist(file: str) -> None:
    names = set(re.findall(r"\bFEATUREMAPS_([A-Z_]+)", (ROOT / file).read_text()))
    assert names
    assert {name.lower() for name in names} - set(Settings.model_fields) == set()


def test_the_bill_of_materials_lists_what_is_locked(tmp_path: Path) -> None:
    file = tmp_path / "sbom.json"
    done = run("cyclonedx-py", "requirements", "requirements.lock", "--output-file", str(file))
    assert done.returncode == 0, done.stderr
    listed = {f"{part['name']}=={part['version']}" for part in json.loads(file.read_text())["components"]}
    locked = re.findall(r"^([\w.-]+==[\w.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert listed == set(locked)


def test_the_image_lets_nobody_in_by_itself() -> None:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    assert "ANONYMOUS" not in "\n".join(lines)


def test_the_proxy_takes_as_much_as_the_service() -> None:
    sizes = re.findall(r"client_max_body_size (\d+)m;", (ROOT / "deploy/nginx/nginx.conf").read_text())
    limits = [Settings.model_fields[name].default for name in ("max_body_bytes", "max_model_bytes")]
    assert [int(size) << 20 for size in sizes] == limits
