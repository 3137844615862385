"""One entry of a store of images: its name, what it costs, and how every store refuses."""

import hashlib
import logging
from dataclasses import dataclass

from service.errors import BodyTooLarge, StoreUnavailable

# What an entry costs beside its body. SQLite: the part of a 4 KiB page that the next row does not
# fit in, and two rows in indexes; Redis: keys, fields and the index, about 1 KiB. Without it a
# million images of 35 bytes would be counted as next to nothing and fill the disk.
ENTRY_BYTES = 4096
RETRY_AFTER_S = 1
log = logging.getLogger("featuremaps.store")


@dataclass(frozen=True)
class ImageRecord:
    """What a store knows of an image without its body: enough for an `ETag`, headers and `HEAD`.

    `id` is the SHA-256 of the body in 64 hex digits, `expires_at` seconds since 1970.
    """

    id: str
    size_bytes: int
    media_type: str
    width: int
    height: int
    expires_at: float


@dataclass(frozen=True)
class StoreUsage:
    """How much a store keeps: images that have not expired, and their bytes as the budget counts them."""

    images: int
    stored_bytes: int


def identify(body: bytes, *, max_bytes: int) -> str:
    """Return the SHA-256 of a body that fits into a store of `max_bytes`: 64 hex digits in lower case.

    Raises:
        BodyTooLarge: body and `ENTRY_BYTES` take more than `max_bytes`; `limit` and `actual` are bytes.
    """
    limit = max_bytes - ENTRY_BYTES
    if len(body) > limit:
        detail = f"an image of {len(body)} bytes cannot be kept; the store takes {limit} bytes at most"
        raise BodyTooLarge(detail, limit=limit, actual=len(body))
    return hashlib.sha256(body).hexdigest()


def unavailable(error: Exception) -> StoreUnavailable:
    """What to raise `from error` where a library's error arises.

    The log has the error's class, not its text: Redis repeats the password in one of its errors
    (AUTH renamed by the operator: "unknown command 'AUTH', with args beginning with: ...").
    """
    log.warning("the store of images fails: %s", type(error).__name__)
    detail = "the store of images cannot be reached; the same request can be sent again in a moment"
    return StoreUnavailable(detail, retry_after_s=RETRY_AFTER_S)
