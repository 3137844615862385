"""The compose file, brought up by a real engine."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import httpx
import pytest

from tests.builders import encoded, photograph
from tests.deploy.tools import docker
from tests.intake.redis_server import free_port, until

pytestmark = pytest.mark.engine
IMAGE = encoded(photograph(seed=21), "JPEG")
ANSWERED = 'count(featuremaps_requests_total{route="/v1/images/{image_id}/statistics"})'
KEY = f"somebody:infer:{hashlib.sha256(b'token').hexdigest()}"


@contextmanager
def up(
    image: str, *services: str, profile: str = "", **environ: str
) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    """A client of the proxy, and the environment that makes later commands mean the same."""
    port = free_port()
    variables = {
        "COMPOSE_PROJECT_NAME": "featuremaps-check",
        "COMPOSE_PROFILES": profile,
        "TAG": image.partition(":")[2],
        "PROXY_PORT": str(port),
        **environ,
    }
    try:
        docker(
            "compose",
            "up",
            "--detach",
            "--no-build",
            "--wait",
            "--wait-timeout",
            "180",
            *services,
            **variables,
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client, variables
    finally:
        docker("compose", "down", "--volumes", "--timeout", "30", **variables)


def pinned(client: httpx.Client, **headers: str) -> str:
    """A link whose answer does not change."""
    image = client.post("/v1/images", content=IMAGE, headers=headers).json()["id"]
    model = client.get("/v1/models/cifar-resnet", headers=headers).json()
    pins = "&".join(f"{name}={model[name]}" for name in ("version", "digest", "preprocessing_digest"))
    return f"/v1/images/{image}/render?model=cifar-resnet&layer=stem.relu&{pins}"


def test_up_gives_a_service_behind_a_proxy_that_keeps_what_cannot_change(image: str) -> None:
    with up(image) as (client, variables):
        link = pinned(client)
        answers = [client.get(link) for _ in range(2)]
        assert [answer.headers["X-Cache"] for answer in answers] == ["MISS", "HIT"]
        assert answers[0].content == answers[1].content
        assert answers[0].content.startswith(b"\x89PNG")
        assert client.get("/metrics").status_code == 404
        assert published(variables) == {"127.0.0.1"}
        docker("compose", "stop", **variables)
        assert exit_codes(variables) == {0}


def published(variables: dict[str, str]) -> set[str]:
    listed = docker("compose", "ps", "--format", "json", **variables).splitlines()
    ports = [
        port for line in listed for port in json.loads(line)["Publishers"] or () if port["PublishedPort"]
    ]
    return {port["URL"] for port in ports}


def exit_codes(variables: dict[str, str]) -> set[int]:
    listed = docker("compose", "ps", "--all", "--format", "json", **variables).splitlines()
    return {json.loads(line)["ExitCode"] for line in listed}


def test_with_keys_a_cached_answer_is_refused_without_one(image: str) -> None:
    with up(image, FEATUREMAPS_KEYS=KEY, FEATUREMAPS_ALLOW_ANONYMOUS="false") as (client, _):
        key = {"Authorization": "Bearer token"}
        link = pinned(client, **key)
        asked = [
            client.get(link, headers=headers) for headers in (key, key, {}, {"Authorization": "Bearer x"})
        ]
        told = [(answer.status_code, answer.headers.get("X-Cache")) for answer in asked]
        assert told == [(200, "MISS"), (200, "HIT"), (401, None), (401, None)]


def test_two_replicas_share_images_through_redis_and_prometheus_sees_both(image: str) -> None:
    services = ("--scale", "featuremaps=2", "featuremaps", "proxy", "redis", "prometheus")
    store = "redis://redis:6379/0"
    with up(image, *services, profile="redis,metrics", FEATUREMAPS_IMAGE_STORE=store) as (client, variables):
        image_id = client.post("/v1/images", content=IMAGE).json()["id"]
        assert image_id in docker("compose", "exec", "redis", "redis-cli", "--scan", **variables)
        link = f"/v1/images/{image_id}/statistics?model=cifar-resnet&layers=stem.relu"

        def both_answered() -> bool:
            assert client.get(link).status_code == 200
            return prometheus(ANSWERED, variables) == 2

        until(lambda: prometheus("sum(up)", variables) == 2, within_s=60)
        until(both_answered, within_s=60)


def prometheus(query: str, variables: dict[str, str]) -> int:
    """The single number that a query comes to, 0 for none."""
    address = f"http://127.0.0.1:9090/api/v1/query?query={quote(query)}"
    told = json.loads(docker("compose", "exec", "prometheus", "wget", "-qO-", address, **variables))
    (series,) = told["data"]["result"] or [{"value": [0, 0]}]
    return int(series["value"][1])
