"""The whole way of a request with a device, which is the CPU here, against the same way without one."""

import asyncio
import functools
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from service import app
from service.engine.runner import Runtime, Session
from service.errors import ServiceError
from service.parameters import Drawing, Reduction
from service.pipeline.answers import ArraysAnswer
from service.pipeline.prepare import ImagesRequest, KeptImageRequest
from service.pipeline.views import PictureAnswer
from service.pipeline.work import Pipeline
from service.settings import Settings
from service.syntax import Channels, Region
from service.values import Array, Payload
from service.web.v2.outputs import OutputsAnswer
from service.web.v2.request import InferenceRequest, Output
from tests.builders import encoded, photograph, put, small_cnn
from tests.builders import model as make

AVERAGE = Reduction(pool="avg")
IMAGE = encoded(photograph(64, 48), "PNG")
PHOTOGRAPHS = [encoded(photograph(64 + 8 * i, 48 + 4 * i, seed=i), "PNG") for i in range(5)]
Ask = Callable[[Pipeline], Awaitable[Payload]]


def without_images() -> ModelProto:
    """Two inputs, neither of them an image; its layers have rows and columns."""
    pooled = helper.make_node("MaxPool", ["left"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2])
    added = helper.make_node("Add", ["pooled", "right"], ["sum"])
    return make([pooled, added], {"left": [1, 3, 8, 8], "right": [1, 3, 4, 4]}, ["sum"])


@pytest.fixture
def pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Pipeline]]:
    """One with a device and batches, one without."""
    put(tmp_path, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    put(tmp_path, "fixed", small_cnn(1, 32, 32))
    put(tmp_path, "two", without_images())
    made = []
    for has_device in (True, False):
        monkeypatch.setattr(app, "Runtime", functools.partial(Runtime, bind=has_device))
        settings = Settings(
            models=(tmp_path,),
            image_store=str(tmp_path / f"images-{has_device}.sqlite3"),
            graph_optimization="off",
            load="lazy",
            batching="on" if has_device else "off",
        )
        made.append(app.make_pipeline(settings))
    yield made
    for pipeline in made:
        pipeline.close()


def features(layer: str, reduction: Reduction, images: int = 1) -> Ask:
    asked = ImagesRequest(
        model="small", images=(IMAGE,) * images, layers=(layer,), reduction=reduction, answer=ArraysAnswer()
    )
    return lambda pipeline: pipeline.answer(asked)


def kept_image(layer: str, reduction: Reduction) -> Ask:
    async def ask(pipeline: Pipeline) -> Payload:
        image, _ = await pipeline.images.create("", IMAGE)
        asked = KeptImageRequest(
            model="small",
            image_id=image.id,
            owner="",
            layers=(layer,),
            reduction=reduction,
            answer=ArraysAnswer(),
        )
        return await pipeline.answer(asked)

    return ask


def inference(model: str, layer: str, reduction: Reduction, **tensors: Array) -> Ask:
    asked = InferenceRequest(
        model=model,
        answer=OutputsAnswer(),
        body=b"",
        head_bytes=0,
        id=None,
        tensors=tensors,
        outputs=(Output(layer, reduction, binary=True),),
        default=Output("", Reduction(), binary=True),
    )
    return lambda pipeline: pipeline.answer(asked)


def picture(layer: str, reduction: Reduction) -> Ask:
    asked = ImagesRequest(
        model="small",
        images=(IMAGE,),
        layers=(layer,),
        reduction=reduction,
        answer=PictureAnswer(Drawing(style="grid")),
    )
    return lambda pipeline: pipeline.answer(asked)


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).random(shape, np.float32)


ASKED = {
    "an average of the input": features("image", AVERAGE),
    "an average": features("stem/relu", AVERAGE),
    "channels of two images": features("stem/relu", Reduction(Channels((2, 0))), images=2),
    "levels of averaged channels": features(
        "stem/relu", Reduction(Channels((1, 3)), pool="avg", dtype="uint8")
    ),
    "a region": features("stem/relu", Reduction(region=Region(0, 0, 32, 24), pool="avg"), images=3),
    "the most active": features("stem/relu", Reduction(Channels(top=3), pool="avg"), images=2),
    "a kept image": kept_image("stem/relu", Reduction(Channels((3, 4)), pool="avg")),
    "a model without images": inference(
        "two", "pooled", AVERAGE, left=noise(1, 3, 8, 8), right=noise(1, 3, 4, 4)
    ),
    "no image": inference("small", "stem/relu", AVERAGE, image=noise(0, 3, 32, 32)),
    "five images": inference("small", "stem/relu", AVERAGE, image=noise(5, 3, 32, 32)),
    "a picture of channels": picture("stem/relu", Reduction(Channels((3, 1)))),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_an_answer_with_a_device_is_that_without_one(pipelines: list[Pipeline], ask: Ask) -> None:
    async def answer(pipeline: Pipeline) -> bytes:
        return b"".join((await ask(pipeline)).chunks)

    found, expected = (asyncio.run(answer(pipeline)) for pipeline in pipelines)
    assert found == expected


def test_one_thread_runs_all_sessions_on_a_device_whoever_asks_for_whatever(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread would have handles made for itself and each session, which take the device's memory."""
    (with_device, _), threads = pipelines, set()
    run = Session._run_bound

    def watched(self: Session, *given: Any) -> Any:
        threads.add(threading.current_thread().name)
        return run(self, *given)

    monkeypatch.setattr(Session, "_run_bound", watched)

    async def ask() -> None:
        await asyncio.gather(*(ask(with_device) for ask in ASKED.values()))

    asyncio.run(ask())
    assert threads == {"device_0"}


def test_a_model_is_compiled_beside_the_thread_that_runs(
    pipelines: list[Pipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would else answer nobody meanwhile."""
    (with_device, _), threads = pipelines, set()
    compile_one = Runtime.compile

    def watched(self: Runtime, *given: Any, **named: Any) -> Session:
        threads.add(threading.current_thread().name)
        return compile_one(self, *given, **named)

    monkeypatch.setattr(Runtime, "compile", watched)
    asyncio.run(with_device.models.load_all())
    assert threads
    assert "device_0" not in threads


def random_job(rng: random.Random, layers: Sequence[str]) -> ImagesRequest:
    """Some of which are refused, which has to be the same too."""
    channels = rng.choice([None, None, Channels((1, 0)), Channels((3,)), Channels(top=2)])
    region = rng.choice([None, None, None, Region(0, 0, 32, 24)])
    pool, dtype = (
        rng.choice(["none", "avg", "avg", "max"]),
        rng.choice(["native", "native", "float16", "uint8"]),
    )
    name = rng.choice(["small", "small", "fixed"])
    size = (48, 40) if name == "small" and rng.random() < 0.3 else None
    images = tuple(rng.choice(PHOTOGRAPHS) for _ in range(rng.choice([1, 1, 1, 2, 3, 5])))
    chosen = tuple(rng.sample(layers, rng.choice([1, 1, 2, 3])))
    reduction = Reduction(channels, region, pool, None, dtype)
    return ImagesRequest(
        model=name, images=images, layers=chosen, reduction=reduction, answer=ArraysAnswer(), size=size
    )


@pytest.mark.parametrize("seed", range(3))
def test_many_different_requests_at_one_time_get_with_a_device_what_they_get_without(
    pipelines: list[Pipeline], seed: int
) -> None:
    rng = random.Random(seed)
    layers = [layer.name for layer in pipelines[0].catalog.get("small", None).layers().layers]
    jobs = [random_job(rng, layers) for _ in range(60)]

    async def answer(pipeline: Pipeline, job: ImagesRequest) -> bytes | str:
        try:
            return b"".join((await pipeline.answer(job)).chunks)
        except ServiceError as error:
            return str(error)

    async def answers(pipeline: Pipeline) -> list[bytes | str]:
        return await asyncio.gather(*(answer(pipeline, job) for job in jobs))

    batches: list[int] = []
    pipelines[0].observe_batches(lambda requests, _: batches.append(requests))
    found, expected = (asyncio.run(answers(pipeline)) for pipeline in pipelines)
    assert found == expected
    assert sum(isinstance(one, bytes) for one in found) > 30
    assert max(batches) > 1
