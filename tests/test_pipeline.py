"""Places, deadlines and what is shared."""

import asyncio
import threading
from pathlib import Path

import pytest

from service.app import make_pipeline
from service.errors import DeadlineExceeded, Overloaded
from service.pipeline.shared import Shared
from service.pipeline.stopwatch import Stopwatch
from service.pipeline.work import Pipeline
from service.settings import Settings
from tests.builders import put, small_cnn


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    put(tmp_path / "models", "small", small_cnn())
    store = str(tmp_path / "images.sqlite3")
    return make_pipeline(
        Settings(models=(tmp_path / "models",), image_store=store, max_in_flight=1, threads=1)
    )


def test_a_thread_that_works_on_after_its_deadline_keeps_its_place(pipeline: Pipeline) -> None:
    may_end = threading.Event()

    async def overrun() -> None:
        with pytest.raises(DeadlineExceeded):
            async with pipeline._place(0.05):
                await pipeline._in("run", Stopwatch(), may_end.wait, 10)
        with pytest.raises(Overloaded):
            async with pipeline._place(1):
                pass
        may_end.set()
        while pipeline._in_flight:  # noqa: ASYNC110 - the thread that ends tells nobody else
            await asyncio.sleep(0.001)
        async with pipeline._place(1):
            pass

    asyncio.run(asyncio.wait_for(overrun(), 20))
    pipeline.close()


def test_what_waits_for_a_thread_after_its_deadline_is_never_begun(pipeline: Pipeline) -> None:
    may_end, begun = threading.Event(), threading.Event()

    async def overrun() -> None:
        first = asyncio.create_task(pipeline._in("run", Stopwatch(), may_end.wait, 10))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            async with pipeline._place(0.05):
                await pipeline._in("run", Stopwatch(), begun.set)
        may_end.set()
        await first

    asyncio.run(asyncio.wait_for(overrun(), 20))
    pipeline.close()
    assert not begun.is_set()


def test_work_that_somebody_waits_for_is_not_begun_again() -> None:
    shared, made = Shared(100, len), []

    async def make(keys: object) -> dict[object, str]:
        made.append(keys)
        await asyncio.sleep(0)
        return dict.fromkeys(keys, "x")  # type: ignore[attr-defined]

    async def ask() -> None:
        found = await asyncio.gather(*(shared.get(["a", "b"], make) for _ in range(5)))
        assert found == [{"a": "x", "b": "x"}] * 5

    asyncio.run(ask())
    assert made == [["a", "b"]]


def test_one_caller_leaving_harms_nobody() -> None:
    shared, may_end = Shared(100, len), asyncio.Event()

    async def make(keys: object) -> dict[object, str]:
        await may_end.wait()
        return {"a": "x"}

    async def ask() -> None:
        leaving, staying = (asyncio.create_task(shared.get(["a"], make)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        may_end.set()
        assert await staying == {"a": "x"}

    asyncio.run(ask())


def test_a_failure_reaches_all_who_wait_and_is_tried_again() -> None:
    shared, fails = Shared(100, len), [True]

    async def make(keys: object) -> dict[object, str]:
        if fails.pop() if fails else False:
            raise ValueError("no")
        return {"a": "x"}

    async def ask() -> None:
        found = await asyncio.gather(*(shared.get(["a"], make) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [ValueError] * 3
        assert await shared.get(["a"], make) == {"a": "x"}

    asyncio.run(ask())


def test_what_is_held_stays_within_its_bytes() -> None:
    shared = Shared(10, len)

    async def fill() -> None:
        for key in range(20):

            async def make(keys: object, key: int = key) -> dict[object, str]:
                return {key: "xxx"}

            await shared.get([key], make)
            assert shared.kept_bytes <= 10

    asyncio.run(fill())
