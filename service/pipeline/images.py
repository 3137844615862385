"""Images kept for a while: checked when they come, found by the SHA-256 of their bytes."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from service.errors import ImageNotFound
from service.intake.decode import decode
from service.intake.store import ImageStore
from service.intake.store_entry import ImageRecord, StoreUsage
from service.pipeline.stopwatch import Stopwatch
from service.values import Limits, StoredImage

T = TypeVar("T")
InThread = Callable[..., Awaitable[Any]]


class KeptImages:
    """The store with its blocking calls in threads of their own."""

    def __init__(self, store: ImageStore, limits: Limits, in_thread: InThread, *, decoding: InThread) -> None:
        """`decoding` runs among those that decode, and does not hold up who reads what is kept."""
        self._store = store
        self._limits = limits
        self._in_thread = in_thread
        self._decoding = decoding

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    async def create(self, owner: str, body: bytes) -> tuple[StoredImage, bool]:
        """Keep an image that decodes; the same bytes again renew it. Whether it was new comes second.

        Raises:
            RequestError: it does not decode, or is larger than the store.
            StoreUnavailable
        """
        told: Mapping[str, Any] = await self._decoding(Stopwatch(), _told, body, self._limits.pixels)
        put = partial(self._store.put, owner, body, **told)
        found: tuple[StoredImage, bool] = await self._in_thread(Stopwatch(), put)
        return found

    async def get(self, owner: str, image_id: str) -> StoredImage:
        """The image with its body.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        found: StoredImage | None = await self._in_thread(Stopwatch(), self._store.get, owner, image_id)
        return _there(found, image_id)

    async def body(self, owner: str, image_id: str) -> bytes:
        """The image's bytes.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        return (await self.get(owner, image_id)).body

    async def peek(self, owner: str, image_id: str) -> ImageRecord:
        """What is known of the image, without its bytes.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        found: ImageRecord | None = await self._in_thread(Stopwatch(), self._store.peek, owner, image_id)
        return _there(found, image_id)

    async def delete(self, owner: str, image_id: str) -> None:
        """Forget the image.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        found: bool = await self._in_thread(Stopwatch(), self._store.delete, owner, image_id)
        _there(found or None, image_id)

    async def usage(self) -> StoreUsage:
        """Count the images and bytes of all owners.

        Raises:
            StoreUnavailable
        """
        found: StoreUsage = await self._in_thread(Stopwatch(), self._store.usage)
        return found


def _told(body: bytes, max_pixels: int) -> Mapping[str, Any]:
    picture = decode(body, max_pixels=max_pixels)
    height, width = picture.size
    return {"media_type": picture.media_type, "width": width, "height": height}


def _there(found: T | None, image_id: str) -> T:
    if found is None:
        raise ImageNotFound(
            f"no image {image_id!r}: it was never sent, has expired or was deleted; create_image keeps one",
        )
    return found
