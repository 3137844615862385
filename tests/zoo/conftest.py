"""Runs every check of the zoo test on one export after another, and keeps the results.

A check that passed is not run again until the service's code or the zoo test's changes.

ZOO_NETWORKS: `sample`, or networks (`resnet18`) and exports (`resnet18.dynamo`), separated by spaces.
ZOO_CACHE: the folder of exports (`models/<network>.<variant>/1/model.onnx`), of the oracles' data and of
results; `.zoo-cache` without it. An export is made where it is missing, and used as it is otherwise.
"""

import importlib.util
from collections.abc import Generator
from typing import cast

import pytest

if importlib.util.find_spec("torch") is None:
    # make test-zoo has an environment with torch.
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.zoo.records import Record, Records
    from tests.zoo.subjects import Subject, chosen

    RECORDS = pytest.StashKey[Records]()
    NAMES = pytest.StashKey[list[str]]()

    def pytest_configure(config: pytest.Config) -> None:
        config.stash[RECORDS] = Records()
        config.stash[NAMES] = [f"{network}.{variant}" for network, variant in chosen()]

    def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
        """Parametrize by export; one is done with before the next begins, whatever the module."""
        if "subject" in metafunc.fixturenames:
            only = getattr(metafunc.module, "NETWORKS", None)
            exports = [(n, v) for n, v in chosen() if only is None or n in only]
            ids = [f"{n}.{v}" for n, v in exports]
            metafunc.parametrize("subject", exports, ids=ids, indirect=True, scope="session")

    def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
        """Drop checks that none of the chosen exports takes; what counts over all exports comes last."""
        items[:] = [item for item in items if "NOTSET" not in item.name]
        items.sort(key=lambda item: "test_totals" in item.nodeid)

    @pytest.fixture(scope="session")
    def subject(request: pytest.FixtureRequest) -> Subject:
        return Subject(*request.param)

    @pytest.fixture(scope="session")
    def records(pytestconfig: pytest.Config) -> Records:
        return pytestconfig.stash[RECORDS]

    @pytest.fixture(scope="session")
    def names(pytestconfig: pytest.Config) -> list[str]:
        """Of the chosen exports."""
        return pytestconfig.stash[NAMES]

    def _key(item: pytest.Function) -> tuple[str, str] | None:
        """Check and export, of what is kept."""
        callspec = getattr(item, "callspec", None)
        if callspec is None or "subject" not in callspec.params:
            return None
        return str(item.originalname).removeprefix("test_"), ".".join(callspec.params["subject"])

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
        """Skip the call where the check passed before with the same code."""
        key = _key(pyfuncitem)
        return True if key and pyfuncitem.config.stash[RECORDS].passed(*key) else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        item: pytest.Function, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        key, kept = _key(item), item.config.stash[RECORDS]
        if key and call.when == "call" and not kept.passed(*key):
            message = call.excinfo.exconly().partition("\n")[0] if call.excinfo else ""
            numbers = cast("dict[str, int]", dict(item.user_properties))
            kept.add(Record(*key, report.passed, message.removeprefix("Failed: "), numbers))
        return report

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        terminalreporter.section("zoo")
        for line in config.stash[RECORDS].table(config.stash[NAMES]):
            terminalreporter.write_line(line)
