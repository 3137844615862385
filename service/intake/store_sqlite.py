"""Images kept in one SQLite file, shared by the threads and worker processes of one machine."""

import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, StoreUnavailable
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, StoreUsage, identify, unavailable
from service.values import StoredImage

BUSY_S = 5.0
WAL_BYTES = 16 << 20
_APPLICATION_ID = 0x666D6170  # "fmap"
_SCHEMA_VERSION = 1
# `body` stands last: SQLite reads the columns before it without following its chain of pages.
_SCHEMA = f"""
PRAGMA journal_mode = WAL;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_SCHEMA_VERSION};
CREATE TABLE images (
    key INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    media_type TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    expires_at REAL NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (owner, id)
);
"""
_INDEX = "CREATE INDEX IF NOT EXISTS images_by_owner ON images (owner, expires_at, size_bytes)"
_ALIVE = "FROM images WHERE owner = ? AND id = ? AND expires_at > ?"
# The inner query reads the index alone, not a page of each image.
_DELETE_EXPIRED = "DELETE FROM images WHERE key IN (SELECT key FROM images WHERE expires_at <= ?)"
_INSERT_OR_RENEW = """
INSERT INTO images (owner, id, media_type, width, height, size_bytes, expires_at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (owner, id) DO UPDATE SET
    media_type = excluded.media_type, width = excluded.width, height = excluded.height,
    expires_at = excluded.expires_at
"""


class SqliteStore:
    """The embedded `ImageStore`; it must lie on a local disk, since WAL needs shared memory.

    On the disk the file takes at most `max_bytes`, a thousandth of it and 32 KiB: pages that become
    free are used again. It never shrinks, and may be deleted while nothing runs. The write-ahead
    log takes `WAL_BYTES` and the transaction being written, more only while somebody reads for
    longer than `BUSY_S`. A deleted image's bytes stay in free pages until they are overwritten.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the file, made with mode 0600 (and its folder with 0700) where it is missing.

        Raises:
            ConfigurationError: the file cannot be made, read or written, or is something else.
        """
        self._path = path.absolute()
        self._wal = self._path.with_name(self._path.name + "-wal")
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._closed = False
        try:
            _create(self._path)
            with ExitStack() as stack:
                _check(stack.enter_context(_opened(self._path)))
                # Stays open, because the last connection that closes copies and deletes the log.
                self._open = stack.pop_all()
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigurationError(f"{path} cannot be the store of images: {reason}") from error

    def put(
        self, owner: str, body: bytes, *, media_type: str, width: int, height: int
    ) -> tuple[StoredImage, bool]:
        """See `ImageStore.put`."""
        image_id = identify(body, max_bytes=self._max_bytes)
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            # Read only now: waiting for the lock may have taken seconds.
            now = self._clock()
            expires_at = now + self._max_age_s
            connection.execute(_DELETE_EXPIRED, (now,))
            new = connection.execute(f"SELECT 1 {_ALIVE}", (owner, image_id, now)).fetchone() is None
            if new:
                self._make_room(connection, owner, len(body) + ENTRY_BYTES)
            row = (owner, image_id, media_type, width, height, len(body), expires_at, body)
            connection.execute(_INSERT_OR_RENEW, row)
            connection.execute("COMMIT")
            self._shorten_log(connection)
        return StoredImage(image_id, body, media_type, width, height, expires_at), new

    def get(self, owner: str, image_id: str) -> StoredImage | None:
        """See `ImageStore.get`."""
        row = self._row("body", owner, image_id)
        return None if row is None else StoredImage(*row)

    def peek(self, owner: str, image_id: str) -> ImageRecord | None:
        """See `ImageStore.peek`."""
        row = self._row("size_bytes", owner, image_id)
        return None if row is None else ImageRecord(*row)

    def delete(self, owner: str, image_id: str) -> bool:
        """See `ImageStore.delete`."""
        with self._connection() as connection:
            found = connection.execute(f"DELETE {_ALIVE}", (owner, image_id, self._clock()))
            return found.rowcount > 0

    def usage(self) -> StoreUsage:
        """See `ImageStore.usage`."""
        sums = "SELECT count(*), total(size_bytes + ?) FROM images WHERE expires_at > ?"
        with self._connection() as connection:
            images, stored_bytes = connection.execute(sums, (ENTRY_BYTES, self._clock())).fetchone()
        return StoreUsage(images, int(stored_bytes))

    def close(self) -> None:
        """See `ImageStore.close`."""
        self._closed = True
        self._open.close()

    def _row(self, column: str, owner: str, image_id: str) -> Any:
        query = f"SELECT id, {column}, media_type, width, height, expires_at {_ALIVE}"
        with self._connection() as connection:
            return connection.execute(query, (owner, image_id, self._clock())).fetchone()

    def _make_room(self, connection: sqlite3.Connection, owner: str, cost: int) -> None:
        sums = "SELECT owner, sum(size_bytes + ?) FROM images GROUP BY owner"
        held = {owner: 0, **dict(connection.execute(sums, (ENTRY_BYTES,)))}
        excess = sum(held.values()) + cost - self._max_bytes
        share = self._max_bytes / len(held)
        oldest = "SELECT key, size_bytes FROM images WHERE owner = ? ORDER BY expires_at, key LIMIT 1"
        while excess > 0:
            over_share = held[owner] > 0 and held[owner] + cost > share
            loser = owner if over_share else max(held, key=held.__getitem__)
            key, size_bytes = connection.execute(oldest, (loser,)).fetchone()
            connection.execute("DELETE FROM images WHERE key = ?", (key,))
            held[loser] -= size_bytes + ENTRY_BYTES
            excess -= size_bytes + ENTRY_BYTES

    def _shorten_log(self, connection: sqlite3.Connection) -> None:
        # SQLite's own checkpoint stops at what a reader still needs, and never makes the log smaller.
        with suppress(FileNotFoundError):
            if self._wal.stat().st_size > WAL_BYTES:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Open the file for one call, which notices that it was deleted; a call that fails is rolled back."""
        if self._closed:
            raise StoreUnavailable("the store of images is closed: the service is stopping")
        try:
            with _opened(self._path) as connection:
                yield connection
        except sqlite3.Error as error:
            raise unavailable(error) from error


def _create(path: Path) -> None:
    """Make the file where it is missing, whole at once: nobody ever opens one half made.

    It is made under another name and linked, which fails where another process was faster. Making
    it in place would not do: switching to WAL while another does so fails at once, however long
    the busy timeout. The log and the shared memory take over its mode.
    """
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    draft = Path(name)
    try:
        with closing(sqlite3.connect(draft)) as connection:
            connection.executescript(_SCHEMA)
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    # mode=rw: a file that has vanished must fail and not come back empty and without a table.
    # The store may be closed by another thread than the one that opened it.
    uri = f"{path.as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
    with closing(connection):
        connection.execute("PRAGMA synchronous = NORMAL")
        # Some builds overwrite what is deleted, which doubles the writing and fills the log.
        connection.execute("PRAGMA secure_delete = OFF").fetchone()
        yield connection


def _check(connection: sqlite3.Connection) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if (application, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
        raise sqlite3.DatabaseError("it is a file of another program or version")
    connection.execute("BEGIN IMMEDIATE")  # fails where the file cannot be written
    connection.execute(_INDEX)  # not in the schema: files from before shares per owner lack it
    connection.execute("COMMIT")
