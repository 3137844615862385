"""The scripts in `checks/` count what they say."""

import dataclasses
import subprocess
import sys
import threading
import types
from pathlib import Path

from checks.code_size import commit, faults, measure, working_tree
from checks.request_path import Recorder

ROOT = Path(__file__).parents[1]
MOST_MODULES_ON_PATH = 50
TEXT = '''"""A module."""


def outer(x: int) -> int:
    """One line."""

    def inner() -> int:
        """Two lines,
        of which this is one."""
        # A comment counts.
        return x if x else 1

    return inner()
'''


def test_lines_and_functions_are_counted() -> None:
    size = measure({"a.py": TEXT, "b.py": "x = 1\n" * 401})
    assert (size.modules, size.lines, size.functions, size.long_modules) == (2, 414, 2, 1)


def test_a_function_is_as_long_as_its_code_without_its_docstring() -> None:
    size = measure({"a.py": TEXT})
    assert size.longest_function == 9
    assert size.average_function == (9 + 3) / 2
    assert size.docstring_lines_per_function == (1 + 2) / 2


def test_conditional_expressions_are_counted_per_hundred_lines() -> None:
    assert measure({"a.py": TEXT}).conditionals_per_100_lines == 100 / 13


def test_fewer_lines_do_not_excuse_denser_code() -> None:
    before = measure({"a.py": TEXT})
    denser = dataclasses.replace(before, lines=10, conditionals_per_100_lines=10.0)
    assert faults(before, denser, 15) == ["conditional expressions grew"]
    assert faults(before, dataclasses.replace(before, lines=12), 15) == ["lines fell by less than 15 %"]


def test_a_commit_is_read_as_the_working_tree_is(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text(TEXT)
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "Add a module"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    expected = {"package/a.py": TEXT}
    assert working_tree("package", tmp_path) == commit("HEAD", "package", tmp_path) == expected


def test_code_in_other_threads_is_recorded() -> None:
    module = types.ModuleType("package.module")
    exec("def act():\n    return 1", vars(module))
    recorder = Recorder("package")
    threading.setprofile(recorder)
    try:
        seen = recorder.during(lambda: run_in_thread(module.act))
    finally:
        threading.setprofile(None)
    assert {name for name, _ in seen} == {"package.module"}


def run_in_thread(act: types.FunctionType) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


def modules_on_path(*options: str) -> tuple[int, list[str]]:
    command = [sys.executable, "-m", "checks.request_path", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("service.")]


def test_a_request_runs_code_of_few_modules_of_every_stage() -> None:
    status, modules = modules_on_path("--most", str(MOST_MODULES_ON_PATH))
    assert status == 0, modules
    packages = {module.rpartition(".")[0] for module in modules}
    assert {"service.engine", "service.intake", "service.output", "service.pipeline"} <= packages


def test_more_modules_than_allowed_fail() -> None:
    status, modules = modules_on_path("--most", "1")
    assert status == 1
    assert len(modules) > 1
