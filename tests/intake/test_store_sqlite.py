"""What holds for the store in a file: its clock, its file, processes, and a model to compare with."""

import hashlib
import os
import random
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from service.errors import ConfigurationError, StoreUnavailable
from service.intake import store_sqlite
from service.intake.store_entry import ENTRY_BYTES
from service.intake.store_sqlite import WAL_BYTES, SqliteStore

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds since 1970 that stand still until a test moves them; sixteenths add up exactly."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    with closing(opened(tmp_path / "images.db", clock)) as store:
        yield store


def opened(path: Path, clock: Callable[[], float] = Clock(), *, max_bytes: int = 1 << 20) -> SqliteStore:  # noqa: B008
    return SqliteStore(path, max_bytes=max_bytes, max_age_s=60, clock=clock)


def put(store: SqliteStore, body: bytes, owner: str = "") -> str:
    return store.put(owner, body, media_type="image/png", width=3, height=2)[0].id


def test_an_image_lives_until_its_very_moment(store: SqliteStore, clock: Clock) -> None:
    image_id = put(store, b"a")
    clock.now += 60 - 1 / 16
    assert store.get("", image_id) is not None
    clock.now += 1 / 16
    assert store.get("", image_id) is None
    assert store.peek("", image_id) is None
    assert store.delete("", image_id) is False
    assert store.put("", b"a", media_type="image/png", width=3, height=2)[1] is True


def test_images_outlive_the_process_that_put_them(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "images.db")) as store:
        image_id = put(store, b"a")
    with closing(opened(tmp_path / "images.db")) as store:
        assert store.get("", image_id) is not None


def test_only_the_owner_of_the_process_may_read_the_files(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        with closing(opened(tmp_path / "kept" / "images.db")) as store:
            put(store, b"a")
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()}
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(("images.db", "images.db-wal", "images.db-shm"), 0o600)
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700


def test_a_name_may_hold_what_a_url_gives_a_meaning(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "im?mode=ro#%41.db")) as store:
        put(store, b"a")
    assert (tmp_path / "im?mode=ro#%41.db").is_file()


def test_closing_leaves_one_file(tmp_path: Path, store: SqliteStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: put(store, bytes([n])), range(40)))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images.db"]


def test_a_closed_store_is_unavailable(store: SqliteStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable):
        put(store, b"a")


def test_closing_while_a_call_runs_leaves_one_file(tmp_path: Path) -> None:
    def close_and_tell_the_time() -> float:
        closing_store.close()
        return 0.0

    closing_store = opened(tmp_path / "images.db", close_and_tell_the_time)
    put(closing_store, b"a")
    assert [path.name for path in tmp_path.iterdir()] == ["images.db"]


def foreign_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE images (key INTEGER)")


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(random.Random(0).randbytes(9000)),
    "empty": lambda path: path.write_bytes(b""),
    "of another program": foreign_database,
    "a folder": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to(path.parent / "missing" / "images.db"),
}


@pytest.mark.parametrize("make", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_a_file_that_is_no_store_is_refused_at_start_in_one_line(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "images.db")
    with pytest.raises(ConfigurationError, match=r"^\S+/images.db cannot be the store of images: .+$"):
        opened(tmp_path / "images.db")


def test_a_file_from_before_shares_per_owner_is_still_used(tmp_path: Path) -> None:
    path = tmp_path / "images.db"
    with closing(opened(path)) as store:
        image_id = put(store, b"a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX images_by_owner")
        connection.execute("CREATE INDEX images_by_expiry ON images (expires_at, size_bytes)")
    with closing(opened(path)) as store, closing(sqlite3.connect(path)) as connection:
        assert store.get("", image_id) is not None
        names = connection.execute("SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE INDEX%'").fetchall()
        assert ("images_by_owner",) in names


def test_a_folder_that_cannot_be_made_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"Not a directory|File exists"):
        opened(tmp_path / "file" / "images.db")


def test_a_file_damaged_while_in_use_is_unavailable_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "images.db"
    with closing(opened(path)) as store:
        image_id = put(store, b"a" * 9000)
    whole = path.read_bytes()
    with closing(opened(path)) as store:
        path.write_bytes(random.Random(0).randbytes(len(whole)))
        for call in (lambda: put(store, b"b"), lambda: store.get("", image_id), lambda: store.peek("", "x")):
            with pytest.raises(StoreUnavailable) as refused:
                call()
            assert refused.value.extensions == {"retry_after_s": 1}
            assert isinstance(refused.value.__cause__, sqlite3.Error)
        path.write_bytes(whole)
        assert store.get("", image_id) is not None


def test_a_file_that_vanishes_does_not_come_back_empty(tmp_path: Path) -> None:
    path = tmp_path / "images.db"
    with closing(opened(path)) as store:
        path.write_bytes(b"garbage, which makes the store let its connection go" * 1000)
        with pytest.raises(StoreUnavailable):
            put(store, b"a")
        path.unlink()
        with pytest.raises(StoreUnavailable):
            put(store, b"a")
    assert not path.exists()


def test_a_file_that_was_deleted_is_noticed(tmp_path: Path, store: SqliteStore) -> None:
    image_id = put(store, b"a")
    (tmp_path / "images.db").unlink()
    for call in (lambda: put(store, b"b"), lambda: store.get("", image_id), store.usage):
        with pytest.raises(StoreUnavailable):
            call()


def test_a_writer_that_never_ends_makes_others_unavailable_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_sqlite, "BUSY_S", 0.05)
    path = tmp_path / "images.db"
    with closing(opened(path)) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        image_id = put(store, b"a")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            put(store, b"b")
        assert store.get("", image_id) is not None
        other.execute("ROLLBACK")
        assert put(store, b"b")


@pytest.mark.parametrize(
    "largest", [(1,), (2100,), (4000,), (1, 250_000, 1), (40, 3000, 9000, 100_000, 3000, 40)], ids=str
)
def test_the_file_stays_within_the_bound(tmp_path: Path, clock: Clock, largest: tuple[int, ...]) -> None:
    """Tiny images, those of which no two share a page, and changes of size, which fragment a file."""
    path, draw, bound = tmp_path / "images.db", random.Random(1), 1 << 18
    with closing(opened(path, clock, max_bytes=bound)) as store:
        for n in range(1200):
            clock.now += 1 / 16
            size = draw.randint(1 + largest[n * len(largest) // 1200] // 2, largest[n * len(largest) // 1200])
            put(store, b"%d" % n + bytes(size), owner="o" * 64)
    assert path.stat().st_size <= bound * 1.001 + (32 << 10)


def test_the_log_beside_the_file_is_cut_short(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "images.db", max_bytes=32 << 20)) as store:
        put(store, bytes(WAL_BYTES + 1))
        assert (tmp_path / "images.db-wal").stat().st_size <= WAL_BYTES


def test_many_that_open_a_missing_file_at_once_share_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def work(n: int) -> str:
        barrier.wait(10)
        with closing(opened(tmp_path / "new" / "images.db")) as store:
            return put(store, bytes([n]))

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(work, range(8)))
    with closing(opened(tmp_path / "new" / "images.db")) as store:
        assert all(store.get("", image_id) for image_id in ids)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["images.db"]


PUTTING = """
import sys
from pathlib import Path
from service.intake.store_sqlite import SqliteStore
store = SqliteStore(Path(sys.argv[1]), max_bytes=1 << 26, max_age_s=600)
for n in range(150):
    store.put(sys.argv[2], b"%d " % n * 2000, media_type="image/png", width=n, height=1)
store.close()
"""


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PUTTING, str(tmp_path / "images.db")]
    processes = [subprocess.Popen([*command, owner], cwd=ROOT) for owner in ("ann", "bob")]
    assert [process.wait(30) for process in processes] == [0, 0]
    with closing(SqliteStore(tmp_path / "images.db", max_bytes=1 << 26, max_age_s=600)) as store:
        for n in range(150):
            body = b"%d " % n * 2000
            for owner in ("ann", "bob"):
                found = store.get(owner, hashlib.sha256(body).hexdigest())
                assert found is not None
                assert (found.body, found.width) == (body, n)


class AgainstADict(RuleBasedStateMachine):
    """Two stores on one file, as two workers have them, and a dict that is right by its shortness.

    The dict maps (owner, body) to the moment of expiry and keeps the order of insertion, which
    decides between two that expire together, as the rows' numbers do.
    """

    MAX_BYTES = 3 * ENTRY_BYTES + 6000
    images = Bundle("images")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.stores = [self.another() for _ in range(2)]
        self.model: dict[tuple[str, bytes], float] = {}

    def another(self) -> SqliteStore:
        return opened(Path(self.folder.name) / "images.db", self.clock, max_bytes=self.MAX_BYTES)

    def cost(self) -> int:
        return sum(len(body) + ENTRY_BYTES for _, body in self.model)

    def next_to_go(self, new: tuple[str, bytes], share: float) -> tuple[str, bytes]:
        held = dict.fromkeys((new[0], "", "ann"), 0)
        for owner, body in self.model:
            held[owner] += len(body) + ENTRY_BYTES
        over_share = held[new[0]] > share
        held[new[0]] -= len(new[1]) + ENTRY_BYTES
        loser = new[0] if held[new[0]] and over_share else max(held, key=held.__getitem__)
        keys = (key for key in self.model if key[0] == loser and key != new)
        return min(keys, key=self.model.__getitem__)

    @rule(
        target=images,
        owner=st.sampled_from(["", "ann"]),
        size=st.sampled_from([1, 2000, 5000]),
        fill=st.sampled_from([b"x", b"y"]),
    )
    def name(self, owner: str, size: int, fill: bytes) -> tuple[str, bytes]:
        return owner, fill * size

    @rule(image=images, worker=st.integers(0, 1))
    def put(self, image: tuple[str, bytes], worker: int) -> None:
        new = image not in self.model
        self.model[image] = self.clock.now + 60
        owner, body = image
        share = self.MAX_BYTES / len({name for name, _ in self.model})
        while self.cost() > self.MAX_BYTES:
            del self.model[self.next_to_go(image, share)]
        stored, was_new = self.stores[worker].put(owner, body, media_type="m", width=1, height=1)
        assert (was_new, stored.expires_at) == (new, self.model[image])

    @rule(image=images, worker=st.integers(0, 1))
    def delete(self, image: tuple[str, bytes], worker: int) -> None:
        owner, body = image
        expected = self.model.pop(image, None) is not None
        assert self.stores[worker].delete(owner, hashlib.sha256(body).hexdigest()) is expected

    @rule(seconds=st.sampled_from([1 / 16, 20, 59, 60]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.model = {
            key: expires_at for key, expires_at in self.model.items() if expires_at > self.clock.now
        }

    @rule(worker=st.integers(0, 1))
    def restart(self, worker: int) -> None:
        self.stores[worker].close()
        self.stores[worker] = self.another()

    @rule(image=images, worker=st.integers(0, 1))
    def read(self, image: tuple[str, bytes], worker: int) -> None:
        owner, body = image
        image_id = hashlib.sha256(body).hexdigest()
        found, record = self.stores[worker].get(owner, image_id), self.stores[worker].peek(owner, image_id)
        assert (found and (found.body, found.expires_at)) == (
            (body, self.model[image]) if image in self.model else None
        )
        assert (record and (record.size_bytes, record.expires_at)) == (
            (len(body), self.model[image]) if image in self.model else None
        )

    @invariant()
    def the_model_is_within_the_bound(self) -> None:
        assert self.cost() <= self.MAX_BYTES

    def teardown(self) -> None:
        for store in getattr(self, "stores", []):
            store.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
