"""How often callers may ask, and who tells them apart."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.app import guard_of
from service.errors import ConfigurationError, RateLimited
from service.settings import Settings
from service.web.keys import make_key
from service.web.rates import MOST_CALLERS, Rates, address_of
from tests.builders import put, small_cnn
from tests.intake.redis_server import PROGRAM, RedisServer
from tests.servers import serving


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    put(folder, "small", small_cnn(), toml="[input]\nsize = [32, 32]\n")
    return folder


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def statuses(client: httpx.Client, count: int, **headers: str) -> list[int]:
    return [client.get("/v1/models", headers=headers).status_code for _ in range(count)]


def test_each_key_has_a_rate_of_its_own(models: Path) -> None:
    made = [make_key(name, "infer") for name in ("ann", "bob")]
    lines = " ".join(line for _, line in made)
    ann, bob = (f"Bearer {token}" for token, _ in made)
    options = ("--models", str(models), "--rate-limit", "3/hour")
    with serving(*options, FEATUREMAPS_KEYS=lines) as server, server.client() as client:
        assert statuses(client, 4, Authorization=ann) == [200, 200, 200, 429]
        assert statuses(client, 1, Authorization=bob) == [200]
        refusal = client.get("/v1/models", headers={"Authorization": ann})
        assert refusal.json()["code"] == "rate-limited"
        assert refusal.json()["limit"] == 3
        assert 3000 < int(refusal.headers["Retry-After"]) <= 3600
        for url in ("/livez", "/readyz", "/metrics"):
            assert client.get(url, headers={"Authorization": ann}).status_code == 200
        assert client.get("/v1/access", headers={"Authorization": ann}).status_code == 204


def test_after_the_time_that_is_told_the_caller_is_let_in_again() -> None:
    async def ask() -> None:
        rates = Rates("1/2second")
        await rates.take("ann")
        with pytest.raises(RateLimited) as refusal:
            await rates.take("ann")
        await asyncio.sleep(refusal.value.extensions["retry_after_s"])
        await rates.take("ann")

    asyncio.run(ask())


# The second is how a socket for both families tells of an IPv4 client.
@pytest.mark.parametrize("host", ["127.0.0.1", "::ffff:127.0.0.1"])
def test_without_keys_addresses_are_told_apart_and_only_a_trusted_proxy_is_believed(
    models: Path, host: str
) -> None:
    options = ("--models", str(models), "--rate-limit", "2/hour", "--host", host, "--allow-anonymous")
    forged = {"X-Forwarded-For": "198.51.100.1"}
    with serving(*options) as server, server.client() as client:
        assert statuses(client, 2) == [200, 200]
        assert statuses(client, 1, **forged) == [429]
    trusted = ("--trusted-proxies", "127.0.0.1", "--trusted-proxies", "10.0.0.0/8")
    with serving(*options, *trusted) as server, server.client() as client:
        for address in ("198.51.100.1", "198.51.100.2", "2001:db8::1"):
            through = {"X-Forwarded-For": f"203.0.113.9, {address}, 10.1.2.3"}
            assert statuses(client, 3, **through) == [200, 200, 429]
        assert statuses(client, 1, **{"X-Forwarded-For": "2001:db8::2"}) == [429]


def test_replicas_count_together_in_redis_and_each_alone_while_it_is_away(
    models: Path, redis_server: RedisServer
) -> None:
    options = ("--models", str(models), "--rate-limit", "3/hour", "--rate-limit-store", redis_server.url)
    with serving(*options) as one, serving(*options) as two, one.client() as first, two.client() as second:
        assert statuses(first, 2) + statuses(second, 2) == [200, 200, 200, 429]
        redis_server.stop()
        assert statuses(second, 4) == [200, 200, 200, 429]


def test_images_in_redis_mean_that_rates_are_counted_there(redis_server: RedisServer) -> None:
    async def counted() -> list[bytes]:
        guard = guard_of(Settings(rate_limit="3/hour", image_store=redis_server.url))
        assert guard.rates is not None
        await guard.rates.take("ann")
        await guard.close()
        return list(redis_server.admin.scan_iter("featuremaps:rates*"))

    assert len(asyncio.run(counted())) == 1


def test_any_number_of_addresses_takes_bounded_memory() -> None:
    async def ask(rates: Rates) -> None:
        for i in range(3 * MOST_CALLERS):
            await rates.take(f"address {i}")

    rates = Rates("1/hour")
    asyncio.run(ask(rates))
    storage = rates._memory.storage
    assert len(storage.storage) == len(storage.expirations) == len(rates._known) == MOST_CALLERS
    with pytest.raises(RateLimited):
        asyncio.run(rates.take(f"address {3 * MOST_CALLERS - 1}"))


def test_who_meets_one_of_several_workers_is_told_its_part() -> None:
    rates = Rates("10/minute", workers=4)

    async def ask() -> None:
        for _ in range(2):
            await rates.take("ann")
        await rates.take("ann")

    with pytest.raises(RateLimited, match="more than 2 per 1 minute") as refusal:
        asyncio.run(ask())
    assert refusal.value.extensions["limit"] == 2


@pytest.mark.parametrize(
    ("client", "stands_for"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("somebody" * 50, ("somebody" * 50)[:100]),
    ],
)
def test_an_address_stands_for_whoever_has_it(client: str, stands_for: str) -> None:
    assert address_of(client) == stands_for


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate_limit", "often"),
        ("rate_limit", "0/minute"),
        ("rate_limit", "5/second, 1000/hour"),
        ("rate_limit", "100/minute;5/second"),
        ("trusted_proxies", ("*",)),
        ("trusted_proxies", ("10.0.0.1/8",)),
        ("rate_limit_store", "memcached://x"),
    ],
)
def test_a_setting_that_means_nothing_stops_the_start(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        guard_of(Settings(**{"rate_limit": "1/minute", name: value}))
