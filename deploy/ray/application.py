"""The service on Ray Serve: `serve run deploy.ray.application:application`.

Each replica is the whole application behind Ray's own proxy. A request goes to one replica, once.
"""

import asyncio
import os

from ray import serve
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import make_app
from service.settings import Settings, read_settings

MIN_REPLICAS = int(os.environ.get("RAY_MIN_REPLICAS", "1"))
MAX_REPLICAS = int(os.environ.get("RAY_MAX_REPLICAS", "8"))
CPUS = float(os.environ.get("RAY_REPLICA_CPUS", "1"))
# Several replicas of small networks may share a GPU: 0.25 puts four on one.
GPUS = float(os.environ.get("RAY_REPLICA_GPUS", "0"))


def settings() -> Settings:
    """The environment's. Others may reach Ray's ports: there have to be keys, or a word that all may ask."""
    return read_settings({"host": "0.0.0.0", "threads": max(1, int(CPUS))}, os.environ)  # noqa: S104


class WholeAnswers:
    """Send each answer in one piece of bytes.

    Ray pickles what a replica sends, and memoryviews have no pickle. A replica that dies before an answer is
    complete has sent nothing of it, so Ray's proxy answers 500 instead of the first half of a 200.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        held: list[Message] = []

        async def hold(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                start, *pieces = held
                # Ray's proxy adds the id itself, the one that it gave the request.
                headers = [header for header in start["headers"] if header[0] != b"x-request-id"]
                await send({**start, "headers": headers})
                await send({**message, "body": b"".join(piece.get("body", b"") for piece in pieces)})

        await self.app(scope, receive, hold if scope["type"] == "http" else send)


def build() -> WholeAnswers:
    """Make the application of one replica."""
    return WholeAnswers(make_app(settings()))


@serve.deployment(
    autoscaling_config={
        "min_replicas": MIN_REPLICAS,
        "max_replicas": MAX_REPLICAS,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 5,
        "downscale_delay_s": 300,
    },
    max_ongoing_requests=16,
    # As many wait as can be answered in some seconds; Ray's proxy refuses the others.
    max_queued_requests=256,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS},
    health_check_period_s=5,
    health_check_timeout_s=15,
    graceful_shutdown_timeout_s=75,
)
@serve.ingress(build)
class Service:
    """One replica."""

    async def check_health(self) -> None:
        """Return once the models are loaded: before the first return Ray sends no requests."""
        while not self.app.app.state.readiness.is_loaded:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


application = Service.bind()
