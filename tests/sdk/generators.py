"""Clients generated from a running service's document, and the programs that go the round trip with them."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

HERE = Path(__file__).parent
BIN = ROOT / ".venv-sdk" / "bin"
MODULES = HERE / "node_modules"
EXAMPLES = ROOT / "deploy" / "examples"
INSTALL = "make test-sdk installs what generates clients"


@dataclass(frozen=True)
class Client:
    """One generator: how it writes a client into a folder, and the command of the program that uses it."""

    generate: Callable[[Path, Path], None]
    program: Path

    def command(self, folder: Path) -> list[str]:
        """What goes the round trip; TypeScript is compiled by `tsc --strict` before."""
        shutil.copy(self.program, folder)
        if self.program.suffix == ".py":
            return [str(BIN / "python"), self.program.name]
        shutil.copy(HERE / "tsconfig.json", folder)
        run(folder, node_tool("tsc"), "--project", ".", "--typeRoots", str(MODULES / "@types"))
        return [str(BIN / "node"), f"built/{self.program.stem}.js"]


def check_installed() -> None:
    """Skips where a generator, Node or Java is missing."""
    for tool in (BIN / "node", BIN / "openapi-generator-cli", BIN / "openapi-python-client", MODULES):
        if not tool.exists():
            pytest.skip(f"no {tool.relative_to(ROOT)}: {INSTALL}")


def run(folder: Path, *command: str) -> str:
    """The output of a program of the generators' own environment; what it says is shown where it fails."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def node_tool(name: str) -> str:
    return str(MODULES / ".bin" / name)


def _hey_api(document: Path, folder: Path) -> None:
    run(folder, node_tool("openapi-ts"), "--input", str(document), "--output", "client")


def _typescript_fetch(document: Path, folder: Path) -> None:
    _openapi_generator(document, folder, "typescript-fetch", "client")


def _python(document: Path, folder: Path) -> None:
    _openapi_generator(document, folder, "python", ".", "--package-name", "generated")


def _openapi_generator(document: Path, folder: Path, kind: str, out: str, *options: str) -> None:
    # Without it no model is written of a body that is a form, and the client imports it all the same.
    forms = ("--global-property", "skipFormModel=false")
    tool = str(BIN / "openapi-generator-cli")
    run(folder, tool, "generate", "-g", kind, "-i", str(document), "-o", out, *forms, *options)


def _python_client(document: Path, folder: Path) -> None:
    config = EXAMPLES / "openapi-python-client.yaml"
    given = ("--path", str(document), "--config", str(config), "--meta", "none", "--output-path", "generated")
    told = run(folder, str(BIN / "openapi-python-client"), "generate", *given)
    assert "omitted" not in told, told


CLIENTS = {
    "@hey-api/openapi-ts": Client(_hey_api, EXAMPLES / "maps.ts"),
    "openapi-generator typescript-fetch": Client(_typescript_fetch, HERE / "round_trip_fetch.ts"),
    "openapi-generator python": Client(_python, HERE / "round_trip_generator.py"),
    "openapi-python-client": Client(_python_client, HERE / "round_trip_python_client.py"),
}
