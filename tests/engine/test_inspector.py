"""Hostile files end in a process of their own, with a reason."""

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from service.engine.extent import ModelLimits
from service.engine.graph import read
from service.engine.inspector import Inspector
from service.engine.loading import load
from service.engine.plan_cache import PlanCache
from service.engine.runner import Runtime
from service.errors import ModelFailed
from tests.builders import put, small_cnn
from tests.engine.hostile import HOSTILE

LIMITS = ModelLimits(1 << 30, 20_000, check_seconds=3, check_memory_bytes=512 << 20)
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def inspector() -> Iterator[Inspector]:
    inspector = Inspector(LIMITS, "all")
    yield inspector
    inspector.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put(tmp_path_factory.mktemp("models"), "good", small_cnn(1, 32, 32))


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused_with_a_reason_and_the_next_file_is_checked(
    inspector: Inspector, good: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = tmp_path / "model.onnx"
    make(file)
    with pytest.raises(ModelFailed) as refusal:
        inspector.check("m", "1", file, tmp_path)
    assert re.search(HOSTILE[make], refusal.value.detail), refusal.value.detail
    assert str(tmp_path) not in refusal.value.detail
    assert len(inspector.check("m", "1", good, NOWHERE)) == 64


def test_a_file_that_was_changed_after_its_check_is_not_loaded(inspector: Inspector, tmp_path: Path) -> None:
    file = put(tmp_path, "m", small_cnn(1, 32, 32))
    digest = inspector.check("m", "1", file, file.parent)
    put(tmp_path, "m", small_cnn(1, 16, 16))
    with pytest.raises(ModelFailed, match="changed after"):
        load("m", "1", file, NOWHERE, Runtime(), PlanCache(1 << 30), partial(read, digest=digest))


def test_the_process_ends_when_nobody_has_asked_for_a_while_and_another_takes_its_place(
    good: Path,
) -> None:
    inspector = Inspector(LIMITS, "all")
    first = inspector.check("good", "1", good, NOWHERE)
    (process,) = inspector.processes
    until_gone(process.pid)
    assert process.returncode == 0
    assert inspector.check("good", "1", good, NOWHERE) == first
    assert inspector.processes != [process]
    inspector.close()


def until_gone(pid: int, seconds: float = 60.0) -> None:
    """Ended and waited for: one that is only dead still stands in /proc."""
    end = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_closed_inspector_leaves_no_process(good: Path) -> None:
    inspector = Inspector(LIMITS, "all")
    inspector.check("good", "1", good, NOWHERE)
    (process,) = inspector.processes
    inspector.close()
    assert process.returncode is not None


def test_the_process_knows_nothing_of_the_services_environment(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATUREMAPS_KEYS", "secret")
    inspector = Inspector(LIMITS, "all")
    inspector.check("good", "1", good, NOWHERE)
    (process,) = inspector.processes
    environment = Path(f"/proc/{process.pid}/environ")
    if not environment.exists():
        pytest.skip("this system does not tell the environment of a process")
    assert b"secret" not in environment.read_bytes()
    inspector.close()


def test_a_closed_inspector_checks_nothing_any_more(good: Path) -> None:
    """Loading may still go on while the service ends: it is refused, and no process is begun for it."""
    closed = Inspector(LIMITS, "all")
    assert closed.check("good", "1", good, NOWHERE)
    closed.close()
    with pytest.raises(ModelFailed, match="ends"):
        closed.check("good", "1", good, NOWHERE)
    assert not closed.processes
