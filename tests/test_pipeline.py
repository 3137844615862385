"""Places, bytes, deadlines, and what is shared."""

import asyncio
import functools
import gc
import io
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from service.app import make_pipeline
from service.engine.draft import Draft
from service.errors import DeadlineExceeded, MalformedRequest, Overloaded
from service.intake.decode import decode
from service.parameters import Drawing, Reduction
from service.pipeline import prepare as prepare_module
from service.pipeline.admission import Admission
from service.pipeline.answers import ArraysAnswer, JsonAnswer
from service.pipeline.pools import Pools
from service.pipeline.prepare import ImagesRequest, KeptImageRequest, TensorRequest
from service.pipeline.request import LONGEST_COMPARED_BYTES, Request
from service.pipeline.shared import Shared, SingleFlight
from service.pipeline.views import PictureAnswer, StatisticsAnswer
from service.pipeline.work import Pipeline
from service.settings import Settings
from service.values import Identity, Picture
from tests.builders import encoded, model, photograph, put, small_cnn, weight

ASKED = ImagesRequest(model="small", images=(b"x",), answer=ArraysAnswer(), layers=("stem/relu",))
MODEL = Identity("small", "1", "0" * 64, "1" * 64)


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
def asked() -> ImagesRequest:
    return replace(ASKED, images=(encoded(photograph(64, 64), "PNG"),))


def test_a_full_service_refuses_and_takes_again_what_has_left() -> None:
    admission = Admission(1, 100)
    with admission.permit() as first, admission.permit() as second:
        first.acquire()
        with pytest.raises(Overloaded):
            second.acquire()
        first.release()
        second.acquire()
    assert (admission.requests, admission.held_bytes) == (0, 0)


def test_bytes_are_refused_beyond_the_budget_and_given_back_at_the_end() -> None:
    admission = Admission(10, 100)
    with admission.permit() as first:
        first.reserve(80)
        with admission.permit() as second:
            with pytest.raises(Overloaded, match="80 that others hold"):
                second.reserve(21)
            second.reserve(20)
            with pytest.raises(Overloaded):
                admission.check()
        assert admission.held_bytes == 80
    assert admission.held_bytes == 0


def test_one_that_is_alone_may_need_more_than_the_budget() -> None:
    """The request holds its body and has the slot, its computation holds what it needs."""
    admission = Admission(10, 100)
    with admission.permit() as request, request.for_computation() as work:
        request.reserve(60)
        request.reserve(60)
        request.acquire()
        work.reserve(500)
    assert (admission.requests, admission.held_bytes) == (0, 0)


def test_two_that_are_worked_on_are_not_alone() -> None:
    admission = Admission(10, 100)
    with admission.permit() as first, admission.permit() as second, first.for_computation() as work:
        first.acquire()
        second.acquire()
        with pytest.raises(Overloaded):
            work.reserve(101)


def test_bodies_that_arrive_while_one_is_worked_on_stay_within_the_budget() -> None:
    admission = Admission(10, 100)
    with admission.permit() as inside, admission.permit() as arriving, admission.permit() as another:
        inside.reserve(10)
        inside.acquire()
        arriving.reserve(80)
        with pytest.raises(Overloaded, match="90 that others hold"):
            another.reserve(11)
        another.reserve(10)
        with pytest.raises(Overloaded):
            arriving.reserve(1)


def test_an_answer_that_is_still_sent_counts_for_others() -> None:
    admission = Admission(10, 100)
    with admission.permit() as sending, admission.permit() as next_one:
        sending.acquire()
        sending.release()
        sending.add(90)
        next_one.acquire()
        with pytest.raises(Overloaded):
            next_one.reserve(20)


def test_a_thread_that_comes_too_late_holds_nothing() -> None:
    admission = Admission(10, 100)
    with admission.permit() as permit:
        permit.reserve(10)
    with pytest.raises(Overloaded):
        permit.reserve(10)
    assert admission.held_bytes == 0


def test_a_thread_that_works_on_after_its_deadline_keeps_a_place(pipeline: Pipeline) -> None:
    may_end = threading.Event()

    async def overrun() -> None:
        with pipeline.admission.permit() as permit, pytest.raises(DeadlineExceeded):
            async with pipeline.bounded(permit, 0.05):
                await pipeline.in_thread(may_end.wait, 10)
        with pytest.raises(Overloaded):
            pipeline.admission.permit().acquire()
        may_end.set()
        while pipeline.admission.requests:  # noqa: ASYNC110 - the thread that ends tells nobody else
            await asyncio.sleep(0.001)
        pipeline.admission.permit().acquire()

    asyncio.run(asyncio.wait_for(overrun(), 20))


def test_what_waits_for_a_thread_after_its_deadline_is_never_begun(pipeline: Pipeline) -> None:
    may_end, begun = threading.Event(), threading.Event()

    async def overrun() -> None:
        first = asyncio.create_task(pipeline.in_thread(may_end.wait, 10))
        await asyncio.sleep(0)
        with pipeline.admission.permit() as permit, pytest.raises(DeadlineExceeded):
            async with pipeline.bounded(permit, 0.05):
                await pipeline.in_thread(begun.set)
        may_end.set()
        await first

    asyncio.run(asyncio.wait_for(overrun(), 20))
    assert not begun.is_set()


def test_the_same_question_asked_at_the_same_time_runs_once(pipeline: Pipeline, asked: ImagesRequest) -> None:
    async def ask() -> list[bytes]:
        await pipeline.models.load_all()
        pipeline.admission.max_requests = 8
        payloads = await asyncio.gather(*(pipeline.answer(asked) for _ in range(8)))
        return [b"".join(payload.chunks) for payload in payloads]

    answers = asyncio.run(ask())
    assert len(set(answers)) == 1
    assert pipeline.runs == 1
    assert (pipeline.admission.requests, pipeline.admission.held_bytes) == (0, 0)


def test_the_first_of_equal_callers_leaving_harms_nobody(pipeline: Pipeline, asked: ImagesRequest) -> None:
    async def ask() -> int:
        await pipeline.models.load_all()
        pipeline.admission.max_requests = 8
        first, second = (asyncio.create_task(pipeline.answer(asked)) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        return (await second).size

    assert asyncio.run(ask()) > 0
    assert pipeline.runs == 1


def test_only_requests_with_equal_answers_have_equal_keys() -> None:
    fields: dict[str, Any] = {"model": "small", "answer": ArraysAnswer(), "layers": ("stem",)}
    asked = ImagesRequest(images=(b"a" * 1000,), size=(32, 32), **fields)
    key = asked.key(MODEL)
    assert key == replace(asked, timeout_s=1.0).key(MODEL)
    others: list[Request] = [
        replace(asked, images=(b"a" * 999 + b"b",)),
        replace(asked, images=(b"b" + b"a" * 999,)),
        TensorRequest(tensor=b"a" * 1000, size=(32, 32), **fields),
        replace(asked, layers=("stem/relu",)),
        replace(asked, size=None),
        replace(asked, coding="zstd"),
        replace(asked, reduction=Reduction(pool="avg")),
        *(replace(asked, answer=answer) for answer in OTHER_ANSWERS),
    ]
    assert len({key, *(other.key(MODEL) for other in others)}) == 1 + len(others)
    assert key != asked.key(replace(MODEL, digest="2" * 64))


OTHER_ANSWERS = (
    ArraysAnswer("npy"),
    ArraysAnswer(compress="deflate"),
    JsonAnswer(),
    StatisticsAnswer(),
    PictureAnswer(Drawing()),
    PictureAnswer(Drawing(clip=1)),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class WithBlur(KeptImageRequest):
    """As a request would be with a field that nobody has thought about yet."""

    blur: int = 0


def test_a_new_field_separates_requests_kept_maps_and_entity_tags() -> None:
    fields: dict[str, Any] = {"model": "small", "answer": ArraysAnswer(), "image_id": "a" * 64, "owner": ""}
    first, second = WithBlur(blur=1, **fields), WithBlur(blur=2, **fields)
    assert first.key(MODEL) != second.key(MODEL)
    assert first.maps_key(MODEL) != second.maps_key(MODEL)
    assert first.text_key() != second.text_key()


def test_maps_are_kept_whatever_is_done_to_them() -> None:
    kept = KeptImageRequest(model="small", answer=ArraysAnswer(), image_id="a" * 64, owner="")
    key = kept.maps_key(MODEL)
    for same in (
        replace(kept, layers=("x",)),
        replace(kept, answer=JsonAnswer()),
        replace(kept, reduction=Reduction(pool="avg")),
    ):
        assert key == same.maps_key(MODEL)
        assert kept.key(MODEL) != same.key(MODEL)
    for other in (replace(kept, owner="x"), replace(kept, image_id="b" * 64), replace(kept, size=(8, 8))):
        assert key != other.maps_key(MODEL)


def test_long_bodies_are_not_compared() -> None:
    first, second = (replace(ASKED, images=(bytes(LONGEST_COMPARED_BYTES + 1),)) for _ in range(2))
    assert first.key(MODEL) != second.key(MODEL)


def test_work_that_somebody_waits_for_is_not_begun_again() -> None:
    flights, made = SingleFlight(), []

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
        flights, may_end = SingleFlight(), asyncio.Event()

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
        flights = SingleFlight()

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
    flights, fails = SingleFlight(), [True]

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

    async def ask(pools: Pools, flights: SingleFlight) -> "weakref.ref[Body]":
        body = Body()
        work = functools.partial(pools.run, "read", functools.partial(refuse, body))
        with pytest.raises(MalformedRequest):
            await (flights.join("key", work) if shared else work())
        return weakref.ref(body)

    pools = Pools(1, Admission(1, 1), lambda: None)
    gc.disable()
    try:
        found = asyncio.run(ask(pools, SingleFlight()))
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
            asked = KeptImageRequest(
                model="named", image_id=kept.id, owner="", layers=(layer,), answer=ArraysAnswer("npy")
            )
            answer = await pipeline.answer(asked)
            found.append(np.load(io.BytesIO(b"".join(answer.chunks))).shape)
        return found

    try:
        whole, pooled = (1, 8, 32, 32), (1, 8, 1, 1)
        assert asyncio.run(shapes()) == [whole, pooled, whole, whole]
    finally:
        pipeline.close()


def test_images_behind_the_one_that_is_decoded_when_its_caller_leaves_are_not_begun(
    pipeline: Pipeline, asked: ImagesRequest, monkeypatch: pytest.MonkeyPatch
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
        caller = asyncio.create_task(pipeline.answer(replace(asked, images=asked.images * 4)))
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
