"""Images kept in one SQLite file, shared by the threads and worker processes of one machine."""

import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from service.errors import ConfigurationError, StoreUnavailable
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, identify, refuse_larger, unavailable
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
CREATE INDEX images_by_expiry ON images (expires_at, size_bytes);
"""
_ALIVE = "FROM images WHERE owner = ? AND id = ? AND expires_at > ?"
_INSERT = """
INSERT INTO images (owner, id, media_type, width, height, size_bytes, expires_at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


class SqliteStore:
    """The embedded `ImageStore`; it must lie on a local disk, since WAL needs shared memory.

    On the disk the file takes at most `max_bytes`, a thousandth of it and 32 KiB: pages that become
    free are used again. It never shrinks, and may be deleted while nothing runs. The write-ahead
    log beside it takes `WAL_BYTES` and what is being written, more only while somebody reads for
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
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        try:
            _create(self._path)
            self._idle.append(_checked(self._path))
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigurationError(f"{path} cannot be the store of images: {reason}") from error

    def put(
        self, owner: str, body: bytes, *, media_type: str, width: int, height: int
    ) -> tuple[StoredImage, bool]:
        """See `ImageStore.put`."""
        refuse_larger(body, max_bytes=self._max_bytes)
        image_id = identify(body)
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            # Read only now: waiting for the lock may have taken seconds.
            now = self._clock()
            image = StoredImage(image_id, body, media_type, width, height, now + self._max_age_s)
            connection.execute("DELETE FROM images WHERE expires_at <= ?", (now,))
            new = not _renew(connection, owner, image)
            if new:
                self._make_room(connection, len(body))
                _insert(connection, owner, image)
            connection.execute("COMMIT")
            self._shorten_log(connection)
        return image, new

    def get(self, owner: str, image_id: str) -> StoredImage | None:
        """See `ImageStore.get`."""
        row = self._row("id, body, media_type, width, height, expires_at", owner, image_id)
        return None if row is None else StoredImage(*row)

    def peek(self, owner: str, image_id: str) -> ImageRecord | None:
        """See `ImageStore.peek`."""
        row = self._row("id, media_type, width, height, size_bytes, expires_at", owner, image_id)
        return None if row is None else ImageRecord(*row)

    def delete(self, owner: str, image_id: str) -> bool:
        """See `ImageStore.delete`."""
        with self._connection() as connection:
            found = connection.execute(f"DELETE {_ALIVE}", (owner, image_id, self._clock()))
            return found.rowcount > 0

    def close(self) -> None:
        """See `ImageStore.close`; a connection still in use is closed by its user."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _row(self, columns: str, owner: str, image_id: str) -> Any:
        with self._connection() as connection:
            asked = (owner, image_id, self._clock())
            return connection.execute(f"SELECT {columns} {_ALIVE}", asked).fetchone()

    def _make_room(self, connection: sqlite3.Connection, size_bytes: int) -> None:
        kept = connection.execute("SELECT total(size_bytes + ?) FROM images", (ENTRY_BYTES,)).fetchone()[0]
        excess = kept + size_bytes + ENTRY_BYTES - self._max_bytes
        while excess > 0:
            oldest = "SELECT key, size_bytes FROM images ORDER BY expires_at, key LIMIT 1"
            key, freed_bytes = connection.execute(oldest).fetchone()
            connection.execute("DELETE FROM images WHERE key = ?", (key,))
            excess -= freed_bytes + ENTRY_BYTES

    def _shorten_log(self, connection: sqlite3.Connection) -> None:
        # SQLite's own checkpoint stops at what a reader still needs, and never makes the log smaller.
        with suppress(FileNotFoundError):
            if self._wal.stat().st_size > WAL_BYTES:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to one thread; one that failed is closed, which rolls back, not kept."""
        try:
            connection = self._take()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store of images is closed: the service is stopping")
            if self._idle:
                return self._idle.pop()
        return _connect(self._path)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _renew(connection: sqlite3.Connection, owner: str, image: StoredImage) -> bool:
    renewed = connection.execute(
        "UPDATE images SET media_type = ?, width = ?, height = ?, expires_at = ? WHERE owner = ? AND id = ?",
        (image.media_type, image.width, image.height, image.expires_at, owner, image.id),
    )
    return renewed.rowcount > 0


def _insert(connection: sqlite3.Connection, owner: str, image: StoredImage) -> None:
    facts = (image.media_type, image.width, image.height, len(image.body), image.expires_at)
    connection.execute(_INSERT, (owner, image.id, *facts, image.body))


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


def _connect(path: Path) -> sqlite3.Connection:
    # mode=rw: a file that has vanished must fail and not come back empty and without a table.
    # One thread at a time uses a connection, but not always the same one.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = NORMAL")
        # Some builds overwrite what is deleted, which doubles the writing and fills the log.
        connection.execute("PRAGMA secure_delete = OFF").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _checked(path: Path) -> sqlite3.Connection:
    connection = _connect(path)
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if (application, version) != (_APPLICATION_ID, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError("it is a file of another program or version")
        connection.execute("BEGIN IMMEDIATE")  # fails where the file cannot be written
        connection.execute("ROLLBACK")
    except BaseException:
        connection.close()
        raise
    return connection
