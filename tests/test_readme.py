"""What the README says is what the code does."""

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli.program import main
from service.declarations import allowed, schema_of
from service.errors import ServiceError
from service.parameters import Drawing, Reduction
from service.settings import Settings
from service.web.problems import CODES, STATUS
from service.web.queries import FeaturesQuery
from tests.builders import encoded, photograph
from tests.conftest import ROOT
from tests.servers import serving

README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def section(title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def rows(title: str) -> list[list[str]]:
    """The cells of a section's first table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_endpoints_are_those_of_the_openapi_document(server: object) -> None:
    import httpx

    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]  # type: ignore[attr-defined]
    served = {
        (f"`{method.upper()} {path}`", f"`{o['operationId']}`")
        for path, x in paths.items()
        for method, o in x.items()
    }
    assert {(row[0], row[1]) for row in rows("Endpoints")} == served


def test_the_settings_are_those_of_the_code() -> None:
    told = {row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows("Settings")}
    real = {name: (shown(name), field.description) for name, field in Settings.model_fields.items()}
    assert told == real


def shown(name: str) -> str:
    default = Settings.model_fields[name].default
    return "" if default in ((), "") else str(default).lower() if isinstance(default, bool) else str(default)


REST = {name: told for name, told in schema_of(FeaturesQuery).items() if name not in schema_of(Reduction)}


@pytest.mark.parametrize(
    ("title", "declared"),
    [
        ("What is done to a map, in this order", schema_of(Reduction)),
        ("How it is drawn", schema_of(Drawing)),
        ("What else a request for arrays takes", REST),
    ],
)
def test_the_parameters_are_those_of_the_code(title: str, declared: Mapping[str, Mapping[str, Any]]) -> None:
    assert rows(title) == [parameter_row(name, told) for name, told in declared.items()]


def parameter_row(name: str, told: Mapping[str, Any]) -> list[str]:
    default = told.get("default", "")
    shown = ", ".join(default) if isinstance(default, list) else str(default)
    return [f"`{name}`", allowed(told), f"`{shown}`" if shown else "", told["description"]]


def test_the_codes_are_those_of_the_code() -> None:
    told = {row[0].strip("`"): int(row[1]) for row in rows("Refusals")}
    assert told == {error.code: status for error, status in STATUS.items()} | {"internal": 500}
    assert set(told) == set(CODES)
    titles: dict[str, type[ServiceError]] = {error.code: error for error in STATUS}
    for code, _, when in rows("Refusals"):
        if code.strip("`") in titles:
            assert when == titles[code.strip("`")].title


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["cpu"],
        *project["optional-dependencies"]["arrow"],
        *project["optional-dependencies"]["tracing"],
    ]
    names = sorted(re.split(r"[>=<; \[]", requirement)[0] for requirement in wanted)
    assert [row[0].strip("`") for row in rows("Dependencies")] == names
    assert all(row[1] for row in rows("Dependencies"))


def test_the_make_targets_are_those_of_the_makefile() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(row[0].strip("`").removeprefix("make ") for row in rows("Working on it")) == sorted(targets)


def test_the_commands_are_those_of_the_program() -> None:
    told = {row[0].strip("`").split()[1] for row in rows("The command")}
    assert told == set(main.commands)
    for name in told:
        assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def test_the_manifest_that_it_shows_is_one() -> None:
    from service.engine.manifest import Manifest

    (toml,) = blocks("toml")
    Manifest.model_validate(tomllib.loads(toml))


def test_what_it_types_gives_what_it_shows(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(photograph(320, 240)))
    curls = [line for block in blocks("console") for line in block.splitlines() if line.startswith("curl")]
    assert len(curls) >= 4
    answers = []
    with serving(cwd=ROOT) as server:
        for line in curls:
            done = subprocess.run(
                line.replace(ADDRESS, server.url),
                shell=True,
                cwd=tmp_path,
                capture_output=True,
                check=True,
                text=True,
            )
            answers.append(done.stdout)
        printed = [
            ran(program.replace(ADDRESS[7:], server.url[7:]), tmp_path) for program in blocks("python")
        ]
    shown_answers = [json.loads(block) for block in blocks("json")]
    given = [json.loads(text) for text in answers if text.startswith("{")]
    assert all(answer in given for answer in shown_answers)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert len(printed) >= 2
    assert set(printed) <= set(blocks("text"))


def ran(program: str, folder: Path) -> str:
    """What a program prints in a folder."""
    command = [os.fspath(ROOT / ".venv/bin/python"), "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("*/*/*.md")],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_page_names_a_path_of_a_machine(path: Path) -> None:
    assert not re.search(r"/(root|home/\w+|work)/", path.read_text())
