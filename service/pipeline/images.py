"""Images kept for a while: checked when they come, found by the SHA-256 of their bytes."""

from typing import TypeVar

from service.errors import ImageNotFound
from service.intake.decode import decode
from service.intake.store import ImageStore
from service.intake.store_entry import ImageRecord, StoreUsage
from service.pipeline.pools import InStage
from service.values import Limits, StoredImage

T = TypeVar("T")


class KeptImages:
    """The store with its blocking calls in threads of their own."""

    def __init__(self, store: ImageStore, limits: Limits, in_thread: InStage, *, decoding: InStage) -> None:
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
        media_type, (height, width) = await self._decoding(_described, body, self._limits.pixels)
        return await self._in_thread(
            self._store.put, owner, body, media_type=media_type, width=width, height=height
        )

    async def get(self, owner: str, image_id: str) -> StoredImage:
        """The image with its body.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        return _there(await self._in_thread(self._store.get, owner, image_id), image_id)

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
        return _there(await self._in_thread(self._store.peek, owner, image_id), image_id)

    async def delete(self, owner: str, image_id: str) -> None:
        """Forget the image.

        Raises:
            ImageNotFound, StoreUnavailable
        """
        was_there = await self._in_thread(self._store.delete, owner, image_id)
        _there(was_there or None, image_id)

    async def usage(self) -> StoreUsage:
        """Count the images and bytes of all owners.

        Raises:
            StoreUnavailable
        """
        return await self._in_thread(self._store.usage)


def _described(body: bytes, max_pixels: int) -> tuple[str, tuple[int, int]]:
    """The media type and (H, W) of an image that decodes."""
    picture = decode(body, max_pixels=max_pixels)
    return picture.media_type, picture.size


def _there(found: T | None, image_id: str) -> T:
    if found is None:
        raise ImageNotFound(
            f"no image {image_id!r}: it was never sent, has expired or was deleted; create_image keeps one",
        )
    return found
