"""A service in this process, so that tests see how often it ran a network."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn

from service.app import make_app
from service.pipeline.work import Pipeline
from service.settings import Settings


class Running:
    """Its address and its pipeline."""

    def __init__(self, url: str, pipeline: Pipeline) -> None:
        self.url = url
        self.pipeline = pipeline

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)


@contextlib.contextmanager
def running(folder: Path, *models: Path, **given: object) -> Iterator[Running]:
    settings = {"models": models, "image_store": str(folder / "images.sqlite3"), **given}
    app = make_app(Settings(**settings))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        end = time.monotonic() + 60
        while not app.state.readiness.ready:
            assert time.monotonic() < end
            time.sleep(0.02)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", app.state.pipeline)
    finally:
        server.should_exit = True
        thread.join(30)
