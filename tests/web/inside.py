"""A service in this process, over real sockets, whose inside a test can look at."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI
from onnx import helper
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from service.app import make_app
from service.pipeline.admission import Admission
from service.settings import Settings
from tests.builders import model, weight
from tests.test_pipeline import held


def slow_cnn() -> object:
    """Some seconds of work for 512x512 pixels, in many nodes: a run can end between two of them."""
    names = ["image", *(f"map{i}" for i in range(79)), "last"]
    nodes = [
        helper.make_node("Conv", [before, "first" if before == "image" else "again"], [after], pads=[2] * 4)
        for before, after in pairwise(names)
    ]
    weights = [weight("first", 32, 3, 5, 5), weight("again", 32, 32, 5, 5)]
    return model(nodes, {"image": ["n", 3, "h", "w"]}, ["last"], weights)


class Scraped:
    """The metrics of a service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def metrics(self) -> dict[str, Metric]:
        """Every family that the service publishes, read by Prometheus's own parser."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return {family.name: family for family in text_string_to_metric_families(text)}

    def metric(self, sample: str, **labels: str) -> float:
        """The samples of that name with these labels, added up."""
        found = [s for family in self.metrics().values() for s in family.samples if s.name == sample]
        return sum(s.value for s in found if labels.items() <= s.labels.items())


class Running(Scraped):
    """A service in this process, whose admission the tests look at."""

    def __init__(self, port: int, admission: Admission) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.port = port
        self.admission = admission

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def until(self, holds: Callable[[], bool], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, (self.admission.requests, self.admission.held_bytes)
            time.sleep(0.005)

    def until_idle(self, seconds: float = 10.0) -> None:
        self.until(lambda: not (self.admission.requests or self.admission.held_bytes), seconds)


def statuses_while_loading(app: FastAPI, name: str, url: str, image: bytes | None = None) -> list[int]:
    """Of five who ask at one time about a model that does not end loading; `image` is kept first."""
    pipeline = app.state.pipeline
    _, may_end = held(pipeline, name)

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            if image is not None:
                assert (await client.post("/v1/images", content=image)).status_code == 201
            answers = await asyncio.wait_for(asyncio.gather(*(client.get(url) for _ in range(5))), 20)
        return sorted(answer.status_code for answer in answers)

    try:
        return asyncio.run(ask())
    finally:
        may_end.set()
        pipeline.close()


@contextlib.contextmanager
def running(folder: Path, **given: object) -> Iterator[Running]:
    settings = {"models": (folder,), "image_store": str(folder / "s.sqlite3"), "threads": 1, **given}
    app = make_app(Settings(**settings))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    service = Running(listening.getsockname()[1], app.state.pipeline.admission)
    try:
        service.until(lambda: app.state.readiness.ready, 30)
        yield service
    finally:
        server.should_exit = True
        thread.join(30)
