"""Requests for different layers that share batches, on the CPU, where it can be tried for what it gives."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.resnet import random_resnet50, relus
from service.app import make_pipeline
from service.engine.runner import Session
from service.errors import ModelFailed, ShapeMismatch
from service.pipeline.answers import ArraysAnswer
from service.pipeline.prepare import ImagesRequest, TensorRequest
from service.pipeline.request import Request
from service.pipeline.work import Pipeline
from service.settings import Settings
from service.values import Array, Payload
from tests.builders import encoded, npy, photograph, put, reshaping_cnn, small_cnn
from tests.oracles import UncutGraph


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    random_resnet50(folder / "resnet50" / "1" / "model.onnx")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    put(folder, "reshaping", reshaping_cnn())
    return folder


@pytest.fixture
def pipeline(models: Path, tmp_path: Path) -> Iterator[Pipeline]:
    settings = Settings(
        models=(models,),
        image_store=str(tmp_path / "s"),
        batching="on",
        graph_optimization="off",
        load="lazy",
    )
    pipeline = make_pipeline(settings)
    yield pipeline
    pipeline.close()


def tensors(count: int, *shape: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.random((1, *shape), np.float32) for _ in range(count)]


def jobs(model: str, layers: list[str], images: list[Array]) -> list[TensorRequest]:
    pairs = zip(layers, images, strict=True)
    answer = ArraysAnswer("npy")
    return [
        TensorRequest(model=model, tensor=npy(image), layers=(layer,), answer=answer)
        for layer, image in pairs
    ]


def answered(pipeline: Pipeline, asked: Sequence[Request]) -> list[Payload | BaseException]:
    async def ask() -> list[Payload | BaseException]:
        return await asyncio.gather(*(pipeline.answer(job) for job in asked), return_exceptions=True)

    return asyncio.run(ask())


def values(payload: Payload | BaseException) -> Array:
    assert isinstance(payload, Payload), payload
    content = b"".join(payload.chunks)
    return np.frombuffer(content[content.index(b"\n") + 1 :], np.float32)


def test_different_layers_of_different_images_equal_the_uncut_graph(pipeline: Pipeline, models: Path) -> None:
    file = models / "resnet50" / "1" / "model.onnx"
    layers = [relus(file)[i] for i in (1, 20, 48, 33, 20, 5)]
    images = tensors(len(layers), 3, 224, 224)
    answers = answered(pipeline, jobs("resnet50", layers, images))
    uncut = UncutGraph(file, sorted(set(layers)))
    for layer, image, answer in zip(layers, images, answers, strict=True):
        expected = uncut.run({"gpu_0/data_0": image})[layer]
        assert np.array_equal(values(answer), expected.ravel())


def test_what_they_have_in_common_runs_once_for_all(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    run = Session.run

    def watched(self: Session, feeds: dict[str, Array], *given: Any, **named: Any) -> object:
        batches.append(max(len(value) for value in feeds.values()))
        return run(self, feeds, *given, **named)

    asked = jobs("small", ["stem/relu", "block2.add"] * 6, tensors(12, 3, 32, 32))
    answered(pipeline, asked)
    monkeypatch.setattr(Session, "run", watched)
    answered(pipeline, asked)
    assert max(batches) > 4
    assert len(batches) < 2 * len(asked)


def test_layers_that_cannot_share_a_batch_are_run_one_by_one(pipeline: Pipeline, models: Path) -> None:
    images = tensors(5, 3, 8, 8)
    answers = answered(pipeline, jobs("reshaping", ["vector"] * 5, images))
    uncut = UncutGraph(models / "reshaping" / "1" / "model.onnx", ["vector"])
    for image, answer in zip(images, answers, strict=True):
        assert np.array_equal(values(answer), uncut.run({"image": image})["vector"].ravel())


def test_one_that_fails_harms_none_of_the_others(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of 7 in an image makes its run fail, alone and in a batch."""
    run = Session.run

    def poisoned(self: Session, feeds: dict[str, Array], *given: Any, **named: Any) -> object:
        if any((value == 7).any() for value in feeds.values()):
            raise ModelFailed("the network did not run on this input", at_run=True)
        return run(self, feeds, *given, **named)

    images = tensors(6, 3, 32, 32)
    images[2][0, 0, 0, 0] = 7
    answered(pipeline, jobs("small", ["stem/relu"] * 6, tensors(6, 3, 32, 32)))
    monkeypatch.setattr(Session, "run", poisoned)
    answers = answered(pipeline, jobs("small", ["stem/relu"] * 6, images))
    assert [isinstance(answer, ModelFailed) for answer in answers] == [i == 2 for i in range(6)]


def test_one_caller_leaving_in_the_middle_of_a_batch_harms_nobody(pipeline: Pipeline) -> None:
    asked = jobs("small", ["block2.add"] * 6, tensors(6, 3, 32, 32))

    async def ask() -> list[Payload]:
        await pipeline.models.load_all()
        callers = [asyncio.create_task(pipeline.answer(job)) for job in asked]
        await asyncio.sleep(0.002)
        callers[0].cancel()
        return await asyncio.gather(*callers[1:])

    assert len(asyncio.run(ask())) == 5
    assert (pipeline.admission.requests, pipeline.admission.held_bytes) == (0, 0)


def test_jpegs_of_many_callers_answer_as_they_do_alone(pipeline: Pipeline) -> None:
    pictures = [encoded(photograph(40, 50, seed=i), "JPEG", quality=90) for i in range(6)]
    asked = [
        ImagesRequest(model="small", images=(picture,), layers=("block1.relu",), answer=ArraysAnswer("npy"))
        for picture in pictures
    ]
    together = answered(pipeline, asked)
    alone = [answered(pipeline, [replace(job)])[0] for job in asked]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(values(one), values(other))


def test_who_leaves_before_a_batch_has_begun_leaves_nothing_behind(pipeline: Pipeline) -> None:
    """However long the batches before it take."""
    assert pipeline.batches is not None
    bodies = []

    async def ask() -> None:
        await pipeline.models.load_all()
        pipeline.batches.free_slots = 0
        asked = jobs("small", ["block2.add"] * 6, tensors(6, 3, 32, 32))
        callers = [asyncio.create_task(pipeline.answer(job)) for job in asked]
        while sum(map(len, pipeline.batches.waiting.values())) < 6:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.001)
        for caller in callers[:-1]:
            caller.cancel()
        await asyncio.wait(callers[:-1])
        bodies.extend(one.ready.request.tensor for some in pipeline.batches.waiting.values() for one in some)
        assert bodies == [asked[-1].tensor]
        callers[-1].cancel()
        await asyncio.wait(callers)
        assert not pipeline.batches.waiting

    asyncio.run(asyncio.wait_for(ask(), 20))


def test_all_that_share_a_batch_are_told_how_long_it_took_and_how_long_they_waited_for_it(
    pipeline: Pipeline,
) -> None:
    asked = jobs("small", ["block2.add"] * 12, tensors(12, 3, 32, 32))
    answered(pipeline, asked)
    for answer in answered(pipeline, asked):
        assert isinstance(answer, Payload)
        assert answer.timings["run"] > 0
        assert answer.timings["queue"] >= 0


def test_no_model_waits_for_ever_behind_another_whose_requests_go_on(pipeline: Pipeline) -> None:
    """One request a batch of the first model, each of which brings the next one."""
    assert pipeline.batches is not None
    pipeline.batches.max_pixels = 1
    others = jobs("small", ["stem/relu"] * 8, tensors(8, 3, 32, 32))
    (one,) = jobs("reshaping", ["vector"], tensors(1, 3, 8, 8))
    is_over = asyncio.Event()

    async def again(job: Request) -> None:
        while not is_over.is_set():
            await pipeline.answer(job)

    async def ask() -> None:
        await pipeline.models.load_all()
        busy = [asyncio.create_task(again(job)) for job in others]
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(20):
                await pipeline.answer(one)
        finally:
            is_over.set()
            await asyncio.wait(busy)

    asyncio.run(ask())


def test_who_leaves_does_not_put_those_beside_it_behind_another_model(pipeline: Pipeline) -> None:
    assert pipeline.batches is not None
    waiting = pipeline.batches.waiting
    asked = jobs("small", ["stem/relu"] * 2, tensors(2, 3, 32, 32))
    asked += jobs("reshaping", ["vector"], tensors(1, 3, 8, 8))

    async def ask() -> None:
        await pipeline.models.load_all()
        pipeline.batches.free_slots = 0
        callers = []
        for number, job in enumerate(asked):
            callers.append(asyncio.create_task(pipeline.answer(job)))
            while sum(map(len, waiting.values())) <= number:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.001)
        order = list(waiting)
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        assert list(waiting) == order
        assert list(map(len, waiting.values())) == [1, 1]
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)

    asyncio.run(asyncio.wait_for(ask(), 20))


@pytest.mark.parametrize(("side", "error"), [(32, ModelFailed), (40, ShapeMismatch)])
def test_a_failed_request_holds_its_tensor_no_longer_than_its_caller_does(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, side: int, error: type[Exception]
) -> None:
    """Without a garbage collection, which may come late."""
    held = []

    def failing(self: Session, feeds: dict[str, Array], *given: Any, **named: Any) -> object:
        held.extend(weakref.ref(value) for value in feeds.values())
        raise ModelFailed("the network did not run on this input", at_run=True)

    answered(pipeline, jobs("small", ["stem/relu"], tensors(1, 3, side, side)))
    monkeypatch.setattr(Session, "run", failing)
    gc.disable()
    try:
        for image in tensors(3, 3, side, side):
            assert isinstance(answered(pipeline, jobs("small", ["stem/relu"], [image]))[0], error)
        assert held
        # The caller may be told before the thread that failed has let go.
        end = time.monotonic() + 10
        while any(tensor() is not None for tensor in held):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        gc.enable()
