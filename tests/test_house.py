"""The house rule, held by machine: who imports whom, how long things are, how errors are named."""

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from checks.code_size import LONGEST_FUNCTION, LONGEST_MODULE, Function, code_lines, functions
from service import errors
from service.errors import CapacityError, ModelError, RequestError, ServiceError
from service.web.problems import STATUS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "service").rglob("*.py"))
MEDIAN_FUNCTION = 10


def named_functions() -> list[tuple[str, Function]]:
    found = []
    for path in FILES:
        for node in functions(ast.parse(path.read_text())):
            found.append((f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node))  # noqa: PERF401
    return found


def concrete_errors() -> list[type[ServiceError]]:
    families = (RequestError, CapacityError, ModelError, ServiceError)
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, ServiceError)]
    return [c for c in classes if c not in families]


def test_imports_point_down_and_rooms_do_not_meet() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_package_has_an_exhaustive_contract_of_layers() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    layered = {name for c in contracts if c.get("exhaustive") for name in c["containers"]}
    packages = {".".join(f.parent.relative_to(ROOT).parts) for f in FILES if f.name == "__init__.py"}
    assert packages == layered


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stays_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


def test_a_function_stays_short() -> None:
    assert [name for name, node in named_functions() if code_lines(node) > LONGEST_FUNCTION] == []


def test_the_median_function_has_under_ten_lines() -> None:
    lengths = sorted(code_lines(node) for _, node in named_functions())
    assert lengths[len(lengths) // 2] < MEDIAN_FUNCTION


def test_async_is_only_where_something_is_waited_for() -> None:
    """Routes and ASGI apps are called with await; all others wait themselves."""
    idle = []
    for name, node in named_functions():
        if isinstance(node, ast.AsyncFunctionDef):
            waits = any(
                isinstance(x, ast.Await | ast.AsyncWith | ast.AsyncFor | ast.Yield) for x in ast.walk(node)
            )
            if not waits and "service/web/" not in name:
                idle.append(name)
    assert idle == []


@pytest.mark.parametrize("error", concrete_errors(), ids=lambda error: error.__name__)
def test_every_error_has_its_familys_status(error: type[ServiceError]) -> None:
    status = STATUS[error]
    if issubclass(error, RequestError):
        assert 400 <= status < 500
    elif issubclass(error, CapacityError):
        assert status in (429, 503, 504)
    else:
        assert status == 503


def test_every_code_is_unique() -> None:
    codes = [error.code for error in concrete_errors()]
    assert len(codes) == len(set(codes))


def test_there_is_no_drawer_for_everything() -> None:
    drawers = {"utils", "helpers", "common", "base", "misc", "core"}
    assert [path for path in FILES if path.stem in drawers] == []
