"""A pytest plugin: with `--expected-skips SUITE` every skip that `expected_skips.txt` does not list fails.

`make` passes the option where `CI` is set, so that a green run cannot hide a missing component.
"""

import re
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("expected_skips.txt")
Report = pytest.TestReport | pytest.CollectReport


def expected_reasons(suite: str, text: str) -> list[re.Pattern[str]]:
    """Return what the reason of an expected skip matches, of one suite."""
    entries = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return [re.compile(pattern) for name, pattern in entries if name == suite]


def fail_if_unexpected(report: Report, patterns: Sequence[re.Pattern[str]]) -> None:
    """Turn the report of an unexpected skip into that of a failure."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    path, line, text = report.longrepr
    reason = text.removeprefix("Skipped: ")
    if not any(pattern.fullmatch(reason) for pattern in patterns):
        report.outcome = "failed"
        report.longrepr = (
            f"{path}:{line}: unexpected skip: {reason}\nInstall what is missing, or list it in {LIST.name}."
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--expected-skips", metavar="SUITE", help=f"fail on skips that {LIST.name} does not list"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin's hooks where the option is given."""
    suite = config.getoption("--expected-skips")
    if suite is not None:
        config.pluginmanager.register(UnexpectedSkips(expected_reasons(suite, LIST.read_text("utf-8"))))


class UnexpectedSkips:
    """Fails tests and modules that are skipped unexpectedly."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self._patterns = patterns

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Check a test's report."""
        report = yield
        fail_if_unexpected(report, self._patterns)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Check the report of a module that is skipped as a whole."""
        report = yield
        fail_if_unexpected(report, self._patterns)
        return report
