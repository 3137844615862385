"""The plugin that fails on unexpected skips, and its list."""

import re
from pathlib import Path

import pytest

from tests import skips

pytest_plugins = ["pytester"]
SKIPPED = """
import pytest

@pytest.fixture(scope="session")
def redis():
    pytest.skip("no redis-server")

def test_with_a_fixture(redis):
    pass

def test_in_its_body():
    pytest.skip("no GPU")

@pytest.mark.xfail
def test_expected_to_fail():
    assert False
"""


@pytest.fixture
def skipping(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.Pytester:
    """A folder of tests that are skipped, and a list with one of them."""
    listed = tmp_path / "listed.txt"
    listed.write_text("# Comment\n\ntest  no GPU\nother no redis-server\n")
    monkeypatch.setattr(skips, "LIST", listed)
    pytester.makepyfile(SKIPPED)
    return pytester


def test_an_unexpected_skip_fails_and_is_named(skipping: pytest.Pytester) -> None:
    result = skipping.runpytest_inprocess("--expected-skips", "test", plugins=[skips])
    result.assert_outcomes(errors=1, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines(["*unexpected skip: no redis-server"])


def test_without_the_option_a_skip_is_a_skip(skipping: pytest.Pytester) -> None:
    result = skipping.runpytest_inprocess(plugins=[skips])
    result.assert_outcomes(skipped=2, xfailed=1)


def test_a_module_that_is_skipped_as_a_whole_fails(skipping: pytest.Pytester) -> None:
    skipping.makepyfile('import pytest\npytest.importorskip("no_such_module")')
    result = skipping.runpytest_inprocess("--expected-skips", "test", plugins=[skips])
    result.assert_outcomes(errors=1)


def test_a_reason_has_to_match_as_a_whole() -> None:
    (pattern,) = skips.expected_reasons("test", "test no [a-z]+\nother no b")
    assert pattern.fullmatch("no helm")
    assert not pattern.fullmatch("no helm here")


def test_every_listed_suite_is_a_make_target() -> None:
    targets = re.findall(r"^([a-z-]+):", (Path(__file__).parents[1] / "Makefile").read_text(), re.MULTILINE)
    lines = [line for line in skips.LIST.read_text().splitlines() if line and line[0] != "#"]
    assert {line.split()[0] for line in lines} <= set(targets)
