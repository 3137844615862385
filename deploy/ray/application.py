"""The service on Ray Serve: `serve run deploy.ray.application:application`.

A replica is the whole application. In front of them stands a door that holds a request until its answer is
there whole: when a replica dies meanwhile, another one is asked. That is safe, since every request either
computes something or names what it stores by its content.
"""

import asyncio
import os
import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from service.app import make_app
from service.errors import Forbidden, Overloaded
from service.settings import Settings, read_settings
from service.web.problems import problem

MIN_REPLICAS = int(os.environ.get("RAY_MIN_REPLICAS", "1"))
MAX_REPLICAS = int(os.environ.get("RAY_MAX_REPLICAS", "8"))
CPUS = float(os.environ.get("RAY_REPLICA_CPUS", "1"))
# Several replicas of small networks may share a GPU: 0.25 puts four on one.
GPUS = float(os.environ.get("RAY_REPLICA_GPUS", "0"))
# Of `upload_model`, the only operation with a body beyond max_body_bytes.
UPLOAD = re.compile(r"/v1/models/[^/]+/versions/[^/]+")
ATTEMPTS = 6
FIRST_PAUSE_S = 0.1


@dataclass(frozen=True)
class Question:
    """A request as it travels to a replica."""

    scope: dict[str, Any]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What a replica sends back, whole."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def settings() -> Settings:
    """The environment's. Others may reach Ray's ports: there have to be keys, or a word that all may ask."""
    return read_settings({"host": "0.0.0.0", "threads": max(1, int(CPUS))}, os.environ)  # noqa: S104


@serve.deployment(
    autoscaling_config={
        "min_replicas": MIN_REPLICAS,
        "max_replicas": MAX_REPLICAS,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 5,
        "downscale_delay_s": 300,
    },
    max_ongoing_requests=16,
    # As many wait as can be answered in some seconds; the others are refused and may come again.
    max_queued_requests=256,
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS},
    health_check_period_s=5,
    health_check_timeout_s=15,
    graceful_shutdown_timeout_s=75,
)
class Service:
    """One replica; it is there once its models are loaded."""

    async def __init__(self) -> None:
        self._app: FastAPI = make_app(settings())
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        while (await self.answer(Question(READY, b""))).status != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def __del__(self) -> None:
        # One that did not start has none.
        if (lifespan := getattr(self, "_lifespan", None)) is not None:
            await lifespan.__aexit__(None, None, None)

    async def answer(self, question: Question) -> Answer:
        """What the application answers."""
        arriving = [{"type": "http.request", "body": question.body, "more_body": False}]
        start: MutableMapping[str, Any] = {}
        pieces: list[bytes] = []

        async def receive() -> MutableMapping[str, Any]:
            if arriving:
                return arriving.pop()
            return await asyncio.Future()  # The door cancels this call when the client leaves.

        async def send(message: MutableMapping[str, Any]) -> None:
            start.update(message) if message["type"] == "http.response.start" else pieces.append(
                message["body"]
            )

        await self._app({**question.scope, "app": self._app}, receive, send)
        return Answer(start["status"], list(start["headers"]), b"".join(pieces))


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0}, max_ongoing_requests=512)
class Door:
    """Takes requests in, and asks again what died with its replica."""

    def __init__(self, service: DeploymentHandle) -> None:
        self._service = service
        self._max_body_bytes = settings().max_body_bytes

    async def __call__(self, request: Request) -> Response:
        """The service's answer."""
        if request.method == "PUT" and UPLOAD.fullmatch(request.url.path):
            return problem(request, Forbidden(NO_UPLOADS))
        question = Question(_portable(request), await self._body(request))
        try:
            answer = await self._asked(question)
        except BackPressureError:
            return problem(request, Overloaded("every replica is busy and others wait", retry_after_s=1))
        response = Response(answer.body, answer.status)
        response.raw_headers = answer.headers
        return response

    async def _asked(self, question: Question) -> Answer:
        for attempt in range(ATTEMPTS):
            try:
                answer: Answer = await self._service.answer.remote(question)
            except RayActorError:
                if attempt == ATTEMPTS - 1:
                    raise
                await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
            else:
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _body(self, request: Request) -> bytes:
        """No more of it than shows the service that it is too large: refusing is the service's own work."""
        announced = Headers(scope=request.scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
            return b""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body_bytes:
                break
        return bytes(body)


# The door would hold gigabytes of whoever asks, and one replica alone would get the model.
NO_UPLOADS = "Ray Serve passes no models on: put the file where all replicas read their models"
SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers")
READY: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/readyz",
    "raw_path": b"/readyz",
    "query_string": b"",
    "root_path": "",
    "headers": [],
    "client": None,
    "server": None,
}


def _portable(request: Request) -> dict[str, Any]:
    """The scope without what belongs to this process."""
    kept = {name: request.scope[name] for name in SCOPE if name in request.scope}
    return {**kept, "client": request.scope.get("client"), "server": None, "root_path": ""}


application = Door.bind(Service.bind())
