"""What holds for every store of images."""

import hashlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import BodyTooLarge, ConfigurationError
from service.intake.store import ImageStore, open_store
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, StoreUsage
from service.intake.store_redis import RedisStore
from service.intake.store_sqlite import SqliteStore
from service.values import StoredImage
from tests.intake.conftest import Opening
from tests.intake.redis_server import until

BODY = b"\x89PNG and the rest\x00\xff"
ID = hashlib.sha256(BODY).hexdigest()
# Bytes of an owner's smallest image; the others are multiples.
OWNERS = {"": 5, "ann": 7, "b:ob": 11}


def identify(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def put(store: ImageStore, body: bytes = BODY, owner: str = "") -> tuple[StoredImage, bool]:
    return store.put(owner, body, media_type="image/png", width=3, height=2)


def put_in_turn(store: ImageStore, *bodies: bytes, owner: str = "") -> list[str]:
    """Put them so that no two expire in the same millisecond."""
    ids = []
    for body in bodies:
        ids.append(put(store, body, owner)[0].id)
        done = time.time()
        until(lambda done=done: time.time() > done + 0.002)  # type: ignore[misc]
    return ids


def kept(store: ImageStore, ids: list[str], owner: str = "") -> list[bool]:
    return [store.peek(owner, image_id) is not None for image_id in ids]


def test_an_image_comes_back_as_it_was_put(store: ImageStore) -> None:
    image, new = put(store)
    assert new
    assert (image.id, image.body, image.media_type, image.width, image.height) == (
        ID,
        BODY,
        "image/png",
        3,
        2,
    )
    assert store.get("", ID) == image


def test_it_expires_when_the_age_has_passed(store: ImageStore) -> None:
    before = time.time()
    image, _ = put(store)
    assert before + 60 - 0.001 <= image.expires_at <= time.time() + 60


def test_a_record_says_all_but_the_body(store: ImageStore) -> None:
    image, _ = put(store)
    assert store.peek("", ID) == ImageRecord(ID, len(BODY), "image/png", 3, 2, image.expires_at)


def test_what_was_never_put_is_unknown(store: ImageStore) -> None:
    assert store.get("", ID) is None
    assert store.peek("", ID) is None
    assert store.delete("", ID) is False


@pytest.mark.parametrize("image_id", ["", "nonsense", "%", ID.upper(), "ü" * 1000])
def test_an_id_that_is_none_is_unknown(store: ImageStore, image_id: str) -> None:
    put(store)
    assert store.get("", image_id) is None
    assert store.peek("", image_id) is None
    assert store.delete("", image_id) is False


def test_a_deleted_image_is_gone_and_new_again(store: ImageStore) -> None:
    put(store)
    assert store.delete("", ID) is True
    assert store.get("", ID) is None
    assert store.delete("", ID) is False
    assert put(store)[1] is True


def test_the_same_bytes_again_renew(store: ImageStore) -> None:
    first, _ = put(store)
    until(lambda: time.time() > first.expires_at - 60 + 0.005)
    second, new = put(store)
    assert not new
    assert second.expires_at > first.expires_at
    assert store.get("", ID) == second


def test_reading_does_not_renew(store: ImageStore) -> None:
    first, _ = put(store)
    until(lambda: time.time() > first.expires_at - 60 + 0.005)
    assert store.get("", ID) == first
    record = store.peek("", ID)
    assert record is not None
    assert record.expires_at == first.expires_at


def test_an_expired_image_is_gone_and_new_again(opening: Opening) -> None:
    store = opening(max_age_s=0.05)
    put(store)
    until(lambda: store.peek("", ID) is None)
    assert store.get("", ID) is None
    assert store.delete("", ID) is False
    assert put(store)[1] is True


def test_an_image_belongs_to_its_owner(store: ImageStore) -> None:
    put(store, owner="ann")
    for other in ("", "bob", "ann:", "Ann", "a%6en"):
        assert store.get(other, ID) is None
        assert store.peek(other, ID) is None
        assert store.delete(other, ID) is False
    assert store.get("ann", ID) is not None


def test_no_id_leads_to_another_owners_image(store: ImageStore) -> None:
    put(store, owner="ann:bob")
    assert store.get("ann", f"bob:{ID}") is None
    assert store.peek("ann", f"bob:{ID}") is None
    assert store.delete("ann", f"bob:{ID}") is False


def test_the_same_bytes_of_two_owners_are_two_entries(store: ImageStore) -> None:
    assert put(store, owner="ann")[1] is True
    assert put(store, owner="bob")[1] is True
    assert store.delete("ann", ID) is True
    assert store.get("bob", ID) is not None


@pytest.mark.parametrize("owner", ["", "ä:b c/%*{}", "o" * 300, "'; DROP TABLE images; --"])
def test_an_owner_may_be_any_text(store: ImageStore, owner: str) -> None:
    put(store, owner=owner)
    found = store.get(owner, ID)
    assert found is not None
    assert found.body == BODY


def test_two_replicas_share_one_store(opening: Opening) -> None:
    here, there = opening(), opening()
    image, _ = put(here)
    assert there.get("", ID) == image
    assert put(there)[1] is False
    assert there.delete("", ID) is True
    assert here.get("", ID) is None


def test_what_expires_first_makes_room(opening: Opening) -> None:
    store = opening(max_bytes=3 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(store, b"a" * 1000, b"b" * 1000, b"c" * 1000, b"d" * 1000)
    assert kept(store, ids) == [False, True, True, True]


def test_a_renewed_image_is_the_last_to_go(opening: Opening) -> None:
    store = opening(max_bytes=2 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(store, b"a" * 1000, b"b" * 1000, b"a" * 1000, b"c" * 1000)
    assert kept(store, ids) == [True, False, True, True]


def test_one_large_image_takes_the_place_of_several_small(opening: Opening) -> None:
    store = opening(max_bytes=4 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(store, *(bytes([n]) * 1000 for n in range(4)), b"x" * (1001 + ENTRY_BYTES))
    assert kept(store, ids) == [False, False, True, True, True]


def test_a_full_store_renews_without_losing_any(opening: Opening) -> None:
    store = opening(max_bytes=3 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(store, b"a" * 1000, b"b" * 1000, b"c" * 1000)
    for body in (b"c" * 1000, b"a" * 1000):
        assert put(store, body)[1] is False
    assert kept(store, ids) == [True, True, True]


def test_what_was_deleted_or_has_expired_counts_no_more(opening: Opening) -> None:
    brief = opening(max_bytes=2 * (1000 + ENTRY_BYTES), max_age_s=0.05)
    long = opening(max_bytes=2 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(long, b"a" * 1000)
    gone, _ = put(brief, b"b" * 1000)
    until(lambda: brief.peek("", gone.id) is None)
    ids += put_in_turn(long, b"c" * 1000)
    assert kept(long, ids) == [True, True]
    long.delete("", ids.pop(0))
    ids += put_in_turn(long, b"d" * 1000)
    assert kept(long, ids) == [True, True]


def test_an_owner_over_the_share_makes_room_with_the_own_oldest_image(opening: Opening) -> None:
    store = opening(max_bytes=4 * (1000 + ENTRY_BYTES))
    (older,) = put_in_turn(store, b"o" * 1000, owner="bob")
    ids = put_in_turn(store, *(bytes([n]) * 1000 for n in range(5)), owner="ann")
    assert kept(store, ids, "ann") == [False, False, True, True, True]
    assert kept(store, [older], "bob") == [True]


def test_an_owner_within_the_share_takes_room_of_the_largest_owner(opening: Opening) -> None:
    store = opening(max_bytes=6 * (1000 + ENTRY_BYTES))
    (oldest,) = put_in_turn(store, b"o" * 1000, owner="bob")
    large = put_in_turn(store, *(bytes([n]) * 1000 for n in range(5)), owner="ann")
    new = put_in_turn(store, b"1" * 1000, b"2" * 1000, owner="cas")
    assert kept(store, [oldest], "bob") + kept(store, new, "cas") == [True, True, True]
    assert kept(store, large, "ann") == [False, False, True, True, True]


def test_an_image_larger_than_a_share_takes_room_of_others(opening: Opening) -> None:
    store = opening(max_bytes=4 * (1000 + ENTRY_BYTES))
    ids = put_in_turn(store, *(bytes([n]) * 1000 for n in range(4)), owner="ann")
    put_in_turn(store, b"x" * (3 * (1000 + ENTRY_BYTES) - ENTRY_BYTES), owner="bob")
    assert kept(store, ids, "ann") == [False, False, False, True]


class BudgetModel:
    """The rule of `ImageStore` on a list of (owner, body), the oldest first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.images: list[tuple[str, bytes]] = []

    def held(self, owner: str | None = None) -> int:
        return sum(len(body) + ENTRY_BYTES for name, body in self.images if owner in (name, None))

    def put(self, owner: str, body: bytes) -> None:
        if (owner, body) in self.images:
            self.images.remove((owner, body))
        cost = len(body) + ENTRY_BYTES
        owners = {owner} | {name for name, _ in self.images}
        while self.held() + cost > self.max_bytes:
            mine = self.held(owner)
            loser = (
                owner if mine and (mine + cost) * len(owners) > self.max_bytes else max(owners, key=self.held)
            )
            self.images.remove(next(image for image in self.images if image[0] == loser))
        self.images.append((owner, body))

    def delete(self, owner: str, body: bytes) -> bool:
        found = (owner, body) in self.images
        self.images = [image for image in self.images if image != (owner, body)]
        return found


@pytest.mark.parametrize("seed", range(4))
def test_budget_and_shares_are_those_of_a_simple_model(opening: Opening, seed: int) -> None:
    draw, max_bytes = random.Random(seed), 8 * ENTRY_BYTES
    model, stores = BudgetModel(max_bytes), [opening(max_bytes=max_bytes) for _ in range(2)]
    # No two owners hold the same number of bytes, so that the model knows which is the largest.
    bodies = {owner: [bytes([n]) * (unit * 3**n) for n in range(6)] for owner, unit in OWNERS.items()}
    for _ in range(60):
        owner = draw.choice(list(bodies))
        body, store = draw.choice(bodies[owner]), draw.choice(stores)
        if draw.random() < 0.2:
            assert store.delete(owner, identify(body)) == model.delete(owner, body)
        else:
            put_in_turn(store, body, owner=owner)
            model.put(owner, body)
        there = [(o, b) for o, own in bodies.items() for b in own if store.peek(o, identify(b))]
        assert sorted(there) == sorted(model.images)
        assert store.usage() == StoreUsage(len(there), model.held())


def test_usage_is_that_of_images_that_have_not_expired(opening: Opening) -> None:
    brief, long = opening(max_age_s=0.05), opening()
    assert long.usage() == StoreUsage(0, 0)
    gone, _ = put(brief, b"b" * 100)
    put(long, b"a" * 1000, owner="ann")
    until(lambda: brief.peek("", gone.id) is None)
    assert long.usage() == StoreUsage(1, 1000 + ENTRY_BYTES)


def test_an_image_larger_than_the_store_is_refused_and_harms_none(opening: Opening) -> None:
    store = opening(max_bytes=1000 + ENTRY_BYTES)
    assert put(store, b"a" * 1000)[1] is True
    with pytest.raises(BodyTooLarge, match=r"1001 bytes.*takes 1000 bytes") as refused:
        put(store, b"a" * 1001)
    assert refused.value.extensions == {"limit": 1000, "actual": 1001}
    assert store.get("", hashlib.sha256(b"a" * 1000).hexdigest()) is not None


def test_an_image_of_30_megabytes_is_kept_whole(opening: Opening) -> None:
    store = opening(max_bytes=64 << 20)
    body = bytes(range(256)) * (30 << 12)
    image, _ = put(store, body)
    assert store.get("", image.id) == image


def test_threads_and_replicas_at_once_lose_nothing(opening: Opening) -> None:
    stores = [opening(max_bytes=16 << 20), opening(max_bytes=16 << 20)]
    bodies = [bytes([n]) * (1000 * n) for n in range(1, 41)]

    def work(n: int) -> bool:
        image, new = put(stores[n % 2], bodies[n % 40])
        assert stores[1 - n % 2].get("", image.id) is not None
        return new

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(120))) == 40


def test_the_url_says_which_store(tmp_path: Path) -> None:
    for url in (str(tmp_path / "a.db"), f"sqlite://{tmp_path}/b%20c.db"):
        store = open_store(url, max_bytes=10000, max_age_s=1)
        assert isinstance(store, SqliteStore)
        store.close()
    assert (tmp_path / "b c.db").is_file()
    for url in ("redis://localhost:1/2", "rediss://u:p@localhost", "unix:///run/redis.sock?db=1"):
        store = open_store(url, max_bytes=10000, max_age_s=1)
        assert isinstance(store, RedisStore)
        store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        ".",
        "/",
        "sqlite://",
        "sqlite:///",
        "sqlite://relative.db",
        "postgres://u:secret@host/db",
        "redis://:secret/x@host:6379",
        "redis://:secret@host:secret",
        "redis://:secret@host?secret=1",
        "redis://:secret@host?socket_timeout=secret",
        "redis://:secret@host?max_connections=-1",
    ],
)
def test_a_wrong_url_is_refused_in_one_line_without_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_store(url, max_bytes=10000, max_age_s=1)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("max_bytes", "max_age_s"),
    [(0, 1), (ENTRY_BYTES, 1), (10000, 0), (10000, float("inf")), (10000, float("nan"))],
)
def test_a_wrong_bound_is_refused(tmp_path: Path, max_bytes: int, max_age_s: float) -> None:
    with pytest.raises(ConfigurationError):
        open_store(str(tmp_path / "images.db"), max_bytes=max_bytes, max_age_s=max_age_s)
    assert list(tmp_path.iterdir()) == []
