"""Places, bytes, deadlines, and what is shared."""

import asyncio
import functools
import gc
import io
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.app import make_pipeline
from service.engine.draft import Draft
from service.errors import DeadlineExceeded, MalformedRequest, Overloaded
from service.intake.decode import decode
from service.pipeline import prepare as prepare_module
from service.pipeline.admission import Admission
from service.pipeline.identical import LONGEST_COMPARED_BYTES, identical
from service.pipeline.pools import Pools
from service.pipeline.shared import Flights, Shared
from service.pipeline.stopwatch import Stopwatch
from service.pipeline.work import Pipeline
from service.settings import Settings
from service.values import Job, Picture
from tests.builders import encoded, model, photograph, put, small_cnn, weight

JOB = Job(model="small", version=None, images=(b"x",), tensor=None, layers=("stem/relu",))


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    put(tmp_path / "models", "small", small_cnn())
    store = str(tmp_path / "images.sqlite3")
    pipeline = make_pipeline(
        Settings(models=(tmp_path / "models",), image_store=store, max_in_flight=1, threads=1)
    )
    yield pipeline
    pipeline.close()


@pytest.fixture
def job() -> Job:
    return replace(JOB, images=(encoded(photograph(64, 64), "PNG"),))


def test_a_full_service_refuses_and_takes_again_what_has_left() -> None:
    admission = Admission(1, 100)
    with admission.visit() as first, admission.visit() as second:
        first.enter()
        with pytest.raises(Overloaded):
            second.enter()
        first.exit()
        second.enter()
    assert (admission.requests, admission.held_bytes) == (0, 0)


def test_bytes_are_refused_beyond_the_budget_and_given_back_at_the_end() -> None:
    admission = Admission(10, 100)
    with admission.visit() as first:
        first.take(80)
        with admission.visit() as second:
            with pytest.raises(Overloaded, match="80 that others hold"):
                second.take(21)
            second.take(20)
            with pytest.raises(Overloaded):
                admission.check()
        assert admission.held_bytes == 80
    assert admission.held_bytes == 0


def test_one_that_is_alone_may_need_more_than_the_budget() -> None:
    """The door's visit holds the body and has the place, the pipeline's holds what the work needs."""
    admission = Admission(10, 100)
    with admission.visit() as request, admission.visit() as work:
        request.take(60)
        request.take(60)
        request.enter()
        work.take(500)
    assert (admission.requests, admission.held_bytes) == (0, 0)


def test_two_that_are_worked_on_are_not_alone() -> None:
    admission = Admission(10, 100)
    with admission.visit() as first, admission.visit() as second, admission.visit() as work:
        first.enter()
        second.enter()
        with pytest.raises(Overloaded):
            work.take(101)


def test_bodies_that_arrive_while_one_is_worked_on_stay_within_the_budget() -> None:
    admission = Admission(10, 100)
    with admission.visit() as inside, admission.visit() as arriving, admission.visit() as another:
        inside.take(10)
        inside.enter()
        arriving.take(80)
        with pytest.raises(Overloaded, match="90 that others hold"):
            another.take(11)
        another.take(10)
        with pytest.raises(Overloaded):
            arriving.take(1)


def test_an_answer_that_is_still_sent_counts_for_others() -> None:
    admission = Admission(10, 100)
    with admission.visit() as sending, admission.visit() as next_one:
        sending.enter()
        sending.exit()
        sending.add(90)
        next_one.enter()
        with pytest.raises(Overloaded):
            next_one.take(20)


def test_a_thread_that_comes_too_late_holds_nothing() -> None:
    admission = Admission(10, 100)
    with admission.visit() as visit:
        visit.take(10)
    with pytest.raises(Overloaded):
        visit.take(10)
    assert admission.held_bytes == 0


def test_a_thread_that_works_on_after_its_deadline_keeps_a_place(pipeline: Pipeline) -> None:
    may_end = threading.Event()

    async def overrun() -> None:
        with pipeline.admission.visit() as visit, pytest.raises(DeadlineExceeded):
            async with pipeline.bounded(visit, 0.05):
                await pipeline._pools.run("run", Stopwatch(), may_end.wait, 10)
        with pytest.raises(Overloaded):
            pipeline.admission.enter()
        may_end.set()
        while pipeline.admission.requests:  # noqa: ASYNC110 - the thread that ends tells nobody else
            await asyncio.sleep(0.001)
        pipeline.admission.enter()

    asyncio.run(asyncio.wait_for(overrun(), 20))


def test_what_waits_for_a_thread_after_its_deadline_is_never_begun(pipeline: Pipeline) -> None:
    may_end, begun = threading.Event(), threading.Event()

    async def overrun() -> None:
        first = asyncio.create_task(pipeline._pools.run("run", Stopwatch(), may_end.wait, 10))
        await asyncio.sleep(0)
        with pipeline.admission.visit() as visit, pytest.raises(DeadlineExceeded):
            async with pipeline.bounded(visit, 0.05):
                await pipeline._pools.run("run", Stopwatch(), begun.set)
        may_end.set()
        await first

    asyncio.run(asyncio.wait_for(overrun(), 20))
    assert not begun.is_set()


def test_the_same_question_asked_at_the_same_time_runs_once(pipeline: Pipeline, job: Job) -> None:
    async def ask() -> list[bytes]:
        await pipeline.models.load_all()
        pipeline.admission.max_requests = 8
        payloads = await asyncio.gather(*(pipeline.extract(job) for _ in range(8)))
        return [b"".join(payload.chunks) for payload in payloads]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1
    assert pipeline.runs == 1
    assert (pipeline.admission.requests, pipeline.admission.held_bytes) == (0, 0)


def test_the_first_of_equal_callers_leaving_harms_nobody(pipeline: Pipeline, job: Job) -> None:
    async def ask() -> int:
        await pipeline.models.load_all()
        pipeline.admission.max_requests = 8
        first, second = (asyncio.create_task(pipeline.extract(job)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        return (await second).size

    assert asyncio.run(ask()) > 0
    assert pipeline.runs == 1


def test_only_equal_jobs_are_identical() -> None:
    job = replace(JOB, images=(b"a" * 1000,))
    assert identical(job) == identical(replace(job, timeout_s=1.0))
    for other in (
        replace(job, images=(b"a" * 999 + b"b",)),
        replace(job, images=(b"b" + b"a" * 999,)),
        replace(job, images=(), tensor=b"a" * 1000),
        replace(job, layers=("stem",)),
        replace(job, owner="somebody"),
        replace(job, size=(32, 32)),
        replace(job, coding="zstd"),
    ):
        assert identical(job) != identical(other)


def test_long_bodies_are_not_compared() -> None:
    long = bytes(LONGEST_COMPARED_BYTES + 1)
    assert identical(replace(JOB, images=(long,))) != identical(replace(JOB, images=(long,)))


def test_work_that_somebody_waits_for_is_not_begun_again() -> None:
    flights, made = Flights(), []

    async def make() -> str:
        made.append(1)
        await asyncio.sleep(0)
        return "x"

    async def ask() -> list[str]:
        return await asyncio.gather(*(flights.join("a", make) for _ in range(5)))

    assert asyncio.run(ask()) == ["x"] * 5
    assert made == [1]


def test_one_caller_leaving_harms_nobody() -> None:
    async def ask() -> str:
        flights, may_end = Flights(), asyncio.Event()

        async def make() -> str:
            await may_end.wait()
            return "x"

        leaving, staying = (asyncio.create_task(flights.join("a", make)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        may_end.set()
        return await staying

    assert asyncio.run(ask()) == "x"


def test_work_is_ended_when_the_last_caller_has_left_and_begun_anew_for_the_next() -> None:
    ended = []

    async def ask() -> str:
        flights = Flights()

        async def endless() -> str:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(1)
            return ""

        async def quick() -> str:
            return "anew"

        callers = [asyncio.create_task(flights.join("a", endless)) for _ in range(2)]
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        return await flights.join("a", quick)

    assert asyncio.run(ask()) == "anew"
    assert ended == [1]


def test_a_failure_reaches_all_who_wait_and_is_tried_again() -> None:
    flights, fails = Flights(), [True]

    async def make() -> str:
        if fails.pop() if fails else False:
            raise ValueError("no")
        return "x"

    async def ask() -> None:
        found = await asyncio.gather(*(flights.join("a", make) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in found] == [ValueError] * 3
        assert await flights.join("a", make) == "x"

    asyncio.run(ask())


class Body:
    """What can be looked for when nobody should hold it any more."""


@pytest.mark.parametrize("shared", [False, True])
def test_of_a_refused_request_nothing_waits_for_the_garbage_collector(shared: bool) -> None:
    def refuse(body: Body) -> None:
        raise MalformedRequest("no image")

    async def ask(pools: Pools, flights: Flights) -> "weakref.ref[Body]":
        body = Body()
        work = functools.partial(pools.run, "read", Stopwatch(), refuse, body)
        with pytest.raises(MalformedRequest):
            await (flights.join("key", work) if shared else work())
        return weakref.ref(body)

    pools = Pools(1, Admission(1, 1), lambda: None)
    gc.disable()
    try:
        found = asyncio.run(ask(pools, Flights()))
        pools.close()  # Its thread has let go by then.
        assert found() is None
    finally:
        gc.enable()


def test_what_is_held_stays_within_its_bytes() -> None:
    shared = Shared(10, len)

    async def fill() -> None:
        for key in range(20):

            async def make() -> str:
                return "xxx"

            assert await shared.get(key, make) == "xxx"
            assert shared.kept_bytes <= 10

    asyncio.run(fill())
    assert (shared.peek(0), shared.peek(19)) == (None, "xxx")


def test_a_tensor_may_be_named_as_anything_that_is_kept_beside_it(tmp_path: Path) -> None:
    """The decoded picture of a kept image is kept beside its maps."""
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["c"], "c", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["c"], ["source"], "r"),
        onnx.helper.make_node("GlobalAveragePool", ["source"], ["pool"], "p"),
    ]
    network = model(nodes, {"image": ["b", 3, "h", "w"]}, ["pool"], [weight("w", 8, 3, 3, 3)])
    put(tmp_path / "models", "named", network, toml="[input]\nsize = [32, 32]\n")
    store = str(tmp_path / "images.sqlite3")
    pipeline = make_pipeline(Settings(models=(tmp_path / "models",), image_store=store))

    async def shapes() -> list[tuple[int, ...]]:
        kept, _ = await pipeline.images.create("", encoded(photograph(40, 40), "PNG"))
        found = []
        for layer in ("source", "pool", "source", "c"):
            asked = replace(JOB, model="named", images=(), image_id=kept.id, layers=(layer,), format="npy")
            answer = await pipeline.extract(asked)
            found.append(np.load(io.BytesIO(b"".join(answer.chunks))).shape)
        return found

    try:
        whole, pooled = (1, 8, 32, 32), (1, 8, 1, 1)
        assert asyncio.run(shapes()) == [whole, pooled, whole, whole]
    finally:
        pipeline.close()


def test_images_behind_the_one_that_is_decoded_when_its_caller_leaves_are_not_begun(
    pipeline: Pipeline, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, begun, may_end = [], threading.Event(), threading.Event()

    def slowly(body: bytes, **limits: Any) -> Picture:
        decoded.append(body)
        begun.set()
        assert may_end.wait(20)
        return decode(body, **limits)

    async def leave() -> None:
        await pipeline.models.load_all()
        monkeypatch.setattr(prepare_module, "decode", slowly)
        caller = asyncio.create_task(pipeline.extract(replace(job, images=job.images * 4)))
        await asyncio.to_thread(begun.wait, 20)
        caller.cancel()
        await asyncio.wait([caller])
        may_end.set()
        while pipeline.admission.requests:  # noqa: ASYNC110 - the thread that ends tells nobody else
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 20))
    assert len(decoded) == 1


def with_models(folder: Path, *names: str) -> Pipeline:
    """With two threads; nothing is loaded yet."""
    for name in names:
        put(folder / "models", name, small_cnn())
    store = str(folder / "images.sqlite3")
    return make_pipeline(Settings(models=(folder / "models",), image_store=store, threads=2))


def held(pipeline: Pipeline, name: str) -> tuple[threading.Event, threading.Event]:
    """A model that is loaded as long as one likes: set when that has begun, and to be set to let it end."""
    begun, may_end = threading.Event(), threading.Event()
    version = pipeline.catalog.entry(name).versions[0]
    load = version._load

    def slowly() -> object:
        begun.set()
        assert may_end.wait(20)
        return load()

    version._load = slowly  # type: ignore[assignment]
    return begun, may_end


def test_who_waits_for_a_model_that_others_left_takes_no_thread(tmp_path: Path) -> None:
    pipeline = with_models(tmp_path, "slow", "quick")
    begun, may_end = held(pipeline, "slow")

    async def ask() -> None:
        for version in (None, "1", None, "1"):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pipeline.models.get("slow", version), 0.1)
            await asyncio.to_thread(begun.wait, 20)
        quick = await asyncio.wait_for(pipeline.models.get("quick", None), 20)
        assert quick.identity.name == "quick"
        waiting = [asyncio.create_task(pipeline.models.get("slow", version)) for version in (None, "1")]
        await asyncio.sleep(0.05)
        may_end.set()
        first, second = await asyncio.wait_for(asyncio.gather(*waiting), 20)
        assert first is second

    try:
        asyncio.run(ask())
    finally:
        may_end.set()
        pipeline.close()


def test_many_who_wait_for_one_model_leave_threads_for_the_others(tmp_path: Path) -> None:
    pipeline = with_models(tmp_path, "slow", "quick")
    begun, may_end = held(pipeline, "slow")

    async def ask() -> None:
        waiting = [asyncio.create_task(pipeline.models.get("slow", None)) for _ in range(5)]
        await asyncio.to_thread(begun.wait, 20)
        assert (await pipeline.models.get("quick", None)).identity.name == "quick"
        assert not any(task.done() for task in waiting)
        may_end.set()
        assert len({id(found) for found in await asyncio.gather(*waiting)}) == 1

    try:
        asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        may_end.set()
        pipeline.close()


def test_who_stops_loading_all_begins_no_further_model(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "models", name, small_cnn())
    store = str(tmp_path / "images.sqlite3")
    pipeline = make_pipeline(Settings(models=(tmp_path / "models",), image_store=store, threads=1))
    begun, may_end = held(pipeline, "a")

    async def stop() -> None:
        loading = asyncio.create_task(pipeline.models.load_all())
        await asyncio.to_thread(begun.wait, 20)
        loading.cancel()
        await asyncio.wait([loading])

    try:
        asyncio.run(asyncio.wait_for(stop(), 60))
    finally:
        may_end.set()
        pipeline.close()
    states = [entry.summary().state for entry in pipeline.catalog.entries.values()]
    assert states[1:] == ["unloaded", "unloaded"]


def test_loading_all_leaves_out_what_was_unloaded_and_goes_on_after_what_fails(tmp_path: Path) -> None:
    for name in ("a", "c"):
        put(tmp_path / "models", name, small_cnn())
    (tmp_path / "models" / "b" / "1").mkdir(parents=True)
    store = str(tmp_path / "images.sqlite3")
    pipeline = make_pipeline(Settings(models=(tmp_path / "models",), image_store=store))
    try:
        pipeline.catalog.unload("a")
        asyncio.run(pipeline.models.load_all())
    finally:
        pipeline.close()
    states = {name: entry.summary().state for name, entry in pipeline.catalog.entries.items()}
    assert states == {"a": "unloaded", "b": "failed", "c": "ready"}


@pytest.mark.parametrize("step", ["__init__", "keep"])
def test_an_upload_that_is_left_at_any_moment_is_whole_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Left while its folder is made, that stayed; while it was named, the clearing up emptied the version."""
    pipeline = with_models(tmp_path, "small")
    begun, slow = threading.Event(), getattr(Draft, step)

    def slowly(draft: Draft, *given: object) -> None:
        begun.set()
        time.sleep(0.2)
        slow(draft, *given)

    monkeypatch.setattr(Draft, step, slowly)

    async def body() -> AsyncIterator[bytes]:
        yield small_cnn().SerializeToString()

    async def leave() -> None:
        upload = asyncio.create_task(pipeline.uploads.receive("small", "7", body()))
        assert await asyncio.to_thread(begun.wait, 20)
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload

    try:
        asyncio.run(leave())
    finally:
        pipeline.close()
    assert not list((tmp_path / "models").glob(".upload-*"))
    version = tmp_path / "models" / "small" / "7"
    assert version.exists() == (step == "keep")
    assert not version.exists() or (version / "model.onnx").stat().st_size > 0
