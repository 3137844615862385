"""Images kept for a while under the SHA-256 of their bytes: what a store does, and opening one."""

import math
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from service.errors import ConfigurationError
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, StoreUsage
from service.intake.store_redis import RedisStore
from service.intake.store_sqlite import SqliteStore
from service.values import StoredImage

_REDIS_SCHEMES = ("redis", "rediss", "unix")


class ImageStore(Protocol):
    """Bounded in bytes and in age; every method may be called from any thread and waits for I/O.

    An image belongs to its owner ("" where keys are off; a key's name or digest, never the key):
    the same bytes of two owners are two entries that count twice and live and die on their own.
    Every entry counts its body and `ENTRY_BYTES` towards `max_bytes`. When a new one does not fit,
    the images that expire first make room: the uploader's own as long as they and the new one take
    more than an equal share (`max_bytes` by the number of owners, the uploader included), otherwise
    those of the owner who holds the most bytes. So an owner within the share loses images only to
    an image that is larger than a share. Of several that expire at the very same moment any may go
    first.

    Every method but `close` raises `StoreUnavailable` with `retry_after_s` where the store does
    not answer; a `put` or `delete` that raises it may still have been done, and can be repeated.
    """

    def put(
        self, owner: str, body: bytes, *, media_type: str, width: int, height: int
    ) -> tuple[StoredImage, bool]:
        """Keep an image for the store's age from now on; the same bytes again renew it.

        Returns:
            The image as it is kept, and whether it was new for this owner.

        Raises:
            BodyTooLarge: it does not fit into the whole store, with `limit` and `actual` in bytes.
            StoreUnavailable: the store does not answer.
        """

    def get(self, owner: str, image_id: str) -> StoredImage | None:
        """The image with its body, or None where it is unknown, expired or another owner's."""

    def peek(self, owner: str, image_id: str) -> ImageRecord | None:
        """The same answer without reading the body, which may be megabytes."""

    def delete(self, owner: str, image_id: str) -> bool:
        """Forget the image; False where `get` would have said None."""

    def usage(self) -> StoreUsage:
        """Count images and bytes; reads an index and no image."""

    def close(self) -> None:
        """Close every connection; to be called once nobody uses the store any more."""


def open_store(url: str, *, max_bytes: int, max_age_s: float) -> ImageStore:
    """Open the store at a path, `sqlite:///absolute/path`, `redis://`, `rediss://` or `unix://`.

    Redis need not be up yet: until it is, calls raise `StoreUnavailable`.

    Raises:
        ConfigurationError: a value that cannot be, or a file that cannot be used, in one line
            without the URL, which may hold a password.
    """
    if max_bytes <= ENTRY_BYTES:
        raise ConfigurationError(f"the store of images needs more than {ENTRY_BYTES} bytes, not {max_bytes}")
    if not (math.isfinite(max_age_s) and max_age_s > 0):
        raise ConfigurationError(f"images are kept for a number of seconds above 0, not {max_age_s}")
    scheme, separator, _ = url.partition("://")
    if separator and scheme.lower() in _REDIS_SCHEMES:
        return RedisStore(url, max_bytes=max_bytes, max_age_s=max_age_s)
    path = _sqlite_path(url) if separator else Path(url)
    if not path.name:
        raise ConfigurationError("the store of images needs the path of a file or a URL")
    return SqliteStore(path, max_bytes=max_bytes, max_age_s=max_age_s)


def _sqlite_path(url: str) -> Path:
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "sqlite":
        raise ConfigurationError(
            "the store of images is a path, sqlite:///path, redis://, rediss:// or unix://, nothing else"
        )
    if not rest.startswith("/"):
        raise ConfigurationError("sqlite:// takes an absolute path: sqlite:///var/lib/featuremaps/images.db")
    return Path(unquote(urlsplit(url).path))
