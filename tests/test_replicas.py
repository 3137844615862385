"""Two replicas behind one real Redis."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.builders import encoded, photograph
from tests.intake.redis_server import PROGRAM, RedisServer
from tests.servers import serving


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("no redis-server: install Redis to test replicas")
    running = RedisServer(tmp_path)
    running.start()
    yield running
    running.stop()


def test_one_replica_answers_for_an_image_that_the_other_keeps(redis: RedisServer, repository: Path) -> None:
    options = ("--models", str(repository), "--image-store", redis.url)
    with (
        serving(*options) as first,
        serving(*options) as second,
        first.client() as one,
        second.client() as two,
    ):
        image = one.post("/v1/images", content=encoded(photograph())).json()["id"]
        url = f"/v1/images/{image}/features?model=small"
        assert two.get(url).content == one.get(url).content
        assert two.delete(f"/v1/images/{image}").status_code == 204
        assert one.get(url).status_code == 404


def test_redis_gone_is_a_503_for_what_needs_it_and_nothing_else_stops(
    redis: RedisServer, repository: Path
) -> None:
    with (
        serving("--models", str(repository), "--image-store", redis.url) as server,
        server.client() as client,
    ):
        body = encoded(photograph())
        image = client.post("/v1/images", content=body).json()["id"]
        redis.stop()
        for answer in (
            client.post("/v1/images", content=body),
            client.get(f"/v1/images/{image}"),
            client.get(f"/v1/images/{image}/features?model=small"),
        ):
            check_unavailable(answer)
        assert client.post("/v1/models/small/features", content=body).status_code == 200
        assert client.get("/readyz").status_code == 200


def check_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "store-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
