"""What holds for the store in Redis: outages, limits, secrets, and what is left in it."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
from limits import parse
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter
from redis.exceptions import OutOfMemoryError, RedisError

from service.errors import StoreUnavailable
from service.intake.store_entry import ENTRY_BYTES, StoreUsage
from service.intake.store_redis import MAX_CONNECTIONS, RedisStore
from tests.intake.redis_server import RedisServer, free_port, until

LONGEST_WAIT_S = 5.0
OWNERS = "featuremaps:image:/owners"


@pytest.fixture
def store(redis: RedisServer) -> Iterator[RedisStore]:
    with closing(opened(redis.url)) as store:
        yield store


def opened(url: str, *, max_bytes: int = 1 << 20, timeout_s: float = 2.0) -> RedisStore:
    return RedisStore(url, max_bytes=max_bytes, max_age_s=60, timeout_s=timeout_s)


def put(store: RedisStore, body: bytes = b"a", owner: str = "") -> str:
    return store.put(owner, body, media_type="image/png", width=3, height=2)[0].id


def refused(call: Callable[[], object]) -> StoreUnavailable:
    """What every failure has in common: soon, ours, without host or secret, its cause beside it."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        call()
    assert time.monotonic() - began < LONGEST_WAIT_S
    assert caught.value.extensions == {"retry_after_s": 1}
    assert "127.0.0.1" not in caught.value.detail
    assert "secret" not in caught.value.detail
    assert isinstance(caught.value.__cause__, RedisError)
    return caught.value


def counted(redis: RedisServer) -> tuple[int, int, int]:
    """Bytes by the owners' sums, by their indexes, and by the images that are there, each with its cost."""
    sums = cast(list[tuple[bytes, float]], redis.admin.zrange(OWNERS, 0, -1, withscores=True))
    indexes = cast(list[bytes], redis.admin.keys(f"{OWNERS}/*"))
    entries = [entry for key in indexes for entry in cast(list[bytes], redis.admin.zrange(key, 0, -1))]
    images = redis.admin.keys("featuremaps:image:[^/]*:*") + redis.admin.keys("featuremaps:image::*")
    return (
        int(sum(score for _, score in sums)),
        sum(int(entry.split(b":")[0]) for entry in entries),
        sum(redis.admin.hstrlen(image, "body") + ENTRY_BYTES for image in images),
    )


def test_while_redis_is_gone_every_call_is_refused_and_after_it_all_work(
    redis: RedisServer, store: RedisStore
) -> None:
    image_id = put(store)
    redis.stop()
    try:
        for call in (
            lambda: put(store),
            lambda: store.get("", image_id),
            lambda: store.peek("", image_id),
            lambda: store.delete("", image_id),
        ):
            refused(call)
    finally:
        redis.start()
    assert store.get("", image_id) is None
    assert put(store) == image_id
    assert store.get("", image_id) is not None


def test_a_restart_between_two_calls_is_not_noticed(redis: RedisServer, store: RedisStore) -> None:
    put(store)
    redis.stop()
    redis.start()
    assert store.get("", "0" * 64) is None


def test_a_store_may_be_opened_before_redis_is_up() -> None:
    with closing(opened(f"redis://127.0.0.1:{free_port()}")) as store:
        refused(lambda: put(store))


def test_a_redis_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with closing(opened(f"redis://127.0.0.1:{port}", timeout_s=0.1)) as store:
            refused(lambda: store.peek("", "0" * 64))
            refused(lambda: put(store, b"a" * 100_000))


def test_more_threads_than_connections_wait_for_one(redis: RedisServer, store: RedisStore) -> None:
    with ThreadPoolExecutor(3 * MAX_CONNECTIONS) as pool:
        ids = list(pool.map(lambda n: put(store, b"%d" % n), range(200)))
    assert all(store.peek("", image_id) for image_id in ids)
    clients = [client for client in redis.admin.client_list() if client["cmd"] in ("evalsha", "hmget")]
    assert 1 < len(clients) <= MAX_CONNECTIONS


def test_a_full_redis_takes_nothing_and_keeps_what_it_has(redis: RedisServer, store: RedisStore) -> None:
    put(store, b"a" * 1000)
    before = counted(redis)
    redis.admin.config_set("maxmemory", 1)
    error = refused(lambda: put(store, b"b" * 1000))
    assert isinstance(error.__cause__, OutOfMemoryError)
    assert counted(redis) == before
    redis.admin.config_set("maxmemory", 0)
    put(store, b"b" * 1000)
    assert counted(redis) == (2 * (1000 + ENTRY_BYTES),) * 3


def test_images_never_push_out_the_counters_of_rate_limits(redis: RedisServer) -> None:
    """With the settings that the documentation asks for: 1.5 times the budget, noeviction."""
    budget = 16 << 20
    redis.admin.config_set("maxmemory", budget * 3 // 2)
    redis.admin.config_set("maxmemory-policy", "noeviction")
    counter, rate = FixedWindowRateLimiter(storage_from_string(redis.url)), parse("5/hour")
    callers = [str(n) for n in range(100)]
    assert all(counter.hit(rate, caller) for caller in callers)
    with closing(opened(redis.url, max_bytes=budget)) as store:
        for n in range(240):
            put(store, b"%d " % n * 50_000, owner=str(n % 3))
        assert budget * 0.9 < store.usage().stored_bytes <= budget
    assert [counter.get_window_stats(rate, caller).remaining for caller in callers] == [4] * 100
    assert redis.admin.info("stats")["evicted_keys"] == 0


def test_a_foreign_value_under_an_images_key_is_unavailable(redis: RedisServer, store: RedisStore) -> None:
    image_id = put(store)
    redis.admin.set(f"featuremaps:image::{image_id}", "foreign")
    for call in (lambda: put(store), lambda: store.get("", image_id), lambda: store.peek("", image_id)):
        refused(call)


def test_a_password_is_used_and_never_shown(
    tmp_path: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator has renamed AUTH: Redis then answers with the password in its error."""
    server = RedisServer(tmp_path, "--requirepass", "right", "--rename-command", "AUTH", "LOGIN")
    server.start()
    try:
        with closing(opened(server.url.replace("//", "//:secret@"))) as store:
            error = refused(lambda: put(store))
            shown = (str(error), repr(error), repr(store), str(vars(store)), caplog.text)
    finally:
        server.stop()
    assert "secret" in str(error.__cause__)
    assert "the store of images fails" in caplog.text
    assert not any("secret" in text for text in shown)


def test_a_right_password_opens_and_a_wrong_one_does_not(tmp_path: Path, redis: RedisServer) -> None:
    server = RedisServer(tmp_path, "--requirepass", "p@ss/secret")
    server.start()
    try:
        with closing(opened(server.url.replace("//", "//:p%40ss%2Fsecret@"))) as store:
            assert store.get("", put(store)) is not None
        for wrong in ("//:secret@", "//"):
            with closing(opened(server.url.replace("//", wrong))) as store:
                refused(lambda store=store: put(store))  # type: ignore[misc]
    finally:
        server.stop()


def test_a_socket_of_the_machine_does_too(redis: RedisServer) -> None:
    with closing(opened(f"unix://{redis.socket}?db=0")) as store:
        assert store.get("", put(store)) is not None


def test_redis_itself_lets_an_image_expire(redis: RedisServer, store: RedisStore) -> None:
    image_id = put(store)
    assert 59_000 < redis.admin.pttl(f"featuremaps:image::{image_id}") <= 60_000


def test_every_key_has_the_prefix_and_nothing_but_counting_is_left(
    redis: RedisServer, store: RedisStore
) -> None:
    for owner in ("", "ann", "b:ob"):
        image_id = put(store, owner=owner)
        keys = cast(list[bytes], redis.admin.keys("*"))
        assert all(key.startswith(b"featuremaps:image:") for key in keys)
        store.delete(owner, image_id)
    assert redis.admin.keys("*") == [OWNERS.encode()]
    assert store.usage() == StoreUsage(0, 0)
    assert redis.admin.keys("*") == []


def test_the_bound_and_the_count_hold_under_concurrency(redis: RedisServer) -> None:
    bound = 10 * (2000 + ENTRY_BYTES)
    stores = [opened(redis.url, max_bytes=bound) for _ in range(2)]

    def work(n: int) -> None:
        image_id = put(stores[n % 2], b"%d " % (n % 60) * (100 + n % 7 * 100), owner=str(n % 3))
        if n % 5 == 0:
            stores[1 - n % 2].delete(str(n % 3), image_id)
        assert stores[n % 2].usage().stored_bytes <= bound

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    for store in stores:
        store.close()
    total, indexed, there = counted(redis)
    assert bound / 2 < total == indexed == there <= bound


@pytest.mark.parametrize("lost", [OWNERS, f"{OWNERS}/"])
def test_counting_starts_again_where_the_count_was_lost(
    redis: RedisServer, store: RedisStore, lost: str
) -> None:
    put(store, b"a")
    put(store, b"b")
    redis.admin.delete(lost)
    assert store.put("", b"a", media_type="image/png", width=3, height=2)[1] is False
    assert counted(redis)[:2] == (1 + ENTRY_BYTES, 1 + ENTRY_BYTES)
    put(store, b"b")
    assert counted(redis) == (2 * (1 + ENTRY_BYTES),) * 3


def test_an_image_that_redis_evicted_is_new_again_and_counts_once(
    redis: RedisServer, store: RedisStore
) -> None:
    image_id = put(store)
    redis.admin.delete(f"featuremaps:image::{image_id}")
    assert store.get("", image_id) is None
    assert store.put("", b"a", media_type="image/png", width=3, height=2)[1] is True
    assert counted(redis) == (1 + ENTRY_BYTES,) * 3


def test_expired_images_leave_the_count_at_the_next_put(redis: RedisServer, store: RedisStore) -> None:
    with closing(RedisStore(redis.url, max_bytes=1 << 20, max_age_s=0.02)) as brief:
        ids = [put(brief, b"%d" % n) for n in range(5)]
        until(lambda: not any(brief.peek("", image_id) for image_id in ids))
    put(store)
    assert counted(redis) == (1 + ENTRY_BYTES,) * 3
