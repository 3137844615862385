"""Stores of images, opened for a test and closed after it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from service.intake.store import ImageStore, open_store
from tests.intake.redis_server import PROGRAM, RedisServer

Opening = Callable[..., ImageStore]


@pytest.fixture(scope="session")
def running_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("no redis-server: install Redis to test the shared store")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(running_redis: RedisServer) -> Iterator[RedisServer]:
    """Empty, with the settings of the start; a test may end it and start it again."""
    running_redis.admin.flushall()
    yield running_redis
    running_redis.admin.config_set("maxmemory", 0)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/images.db"
    server: RedisServer = request.getfixturevalue("redis")
    return server.url


@pytest.fixture
def opening(url: str) -> Iterator[Opening]:
    """Opens the same store as often as it is called, as the replicas of a service do."""
    with ExitStack() as stack:

        def opened(*, max_bytes: int = 1 << 20, max_age_s: float = 60.0) -> ImageStore:
            return stack.enter_context(closing(open_store(url, max_bytes=max_bytes, max_age_s=max_age_s)))

        yield opened


@pytest.fixture
def store(opening: Opening) -> ImageStore:
    return opening()
