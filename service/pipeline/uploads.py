"""Models that come over HTTP: written, checked, and only then given a name."""

import asyncio
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from service.engine.draft import Draft
from service.engine.inspector import Inspector
from service.errors import InvalidModel, MalformedRequest, ModelFailed, Overloaded
from service.pipeline.pools import InStage

T = TypeVar("T")
RETRY_S = 10


@dataclass(frozen=True)
class Uploaded:
    """A version that is there now; loading the model serves it."""

    model: str
    version: str
    digest: str
    bytes: int


class Uploads:
    """One at a time: each writes to the disk as fast as it comes, and is checked by all means."""

    def __init__(self, paths: Sequence[Path], inspector: Inspector, in_thread: InStage) -> None:
        self._paths = paths
        self._inspector = inspector
        self._in_thread = in_thread
        self._is_busy = False

    async def receive(self, name: str, version: str, parts: AsyncIterable[bytes]) -> Uploaded:
        """Write, check and keep a new version of a model.

        Raises:
            VersionExists, RepositoryNotWritable
            InvalidModel: it does not load; the reason is that of the check.
            Overloaded: another one is under way.
        """
        if self._is_busy:
            raise Overloaded("another model is being uploaded", retry_after_s=RETRY_S)
        self._is_busy = True
        try:
            making = asyncio.create_task(self._in_thread(Draft, self._paths, name, version))
            try:
                draft = await _whole(making)
            except asyncio.CancelledError:
                if not making.cancelled() and making.exception() is None:
                    await self._in_thread(making.result().drop)
                raise
            try:
                return await self._kept(draft, name, version, parts)
            finally:
                await asyncio.shield(self._in_thread(draft.drop))
        finally:
            self._is_busy = False

    @property
    def largest_bytes(self) -> int:
        """Of one model."""
        return self._inspector.limits.model_bytes

    async def _kept(self, draft: Draft, name: str, version: str, parts: AsyncIterable[bytes]) -> Uploaded:
        async for part in parts:
            await self._in_thread(draft.write, part)
        if not draft.size:
            raise MalformedRequest("the body is empty: send the bytes of an ONNX file")
        await self._in_thread(draft.finish)
        await self._in_thread(self._check, draft, name, version)
        await _whole(asyncio.create_task(self._in_thread(draft.keep)))
        return Uploaded(name, version, draft.digest, draft.size)

    def _check(self, draft: Draft, name: str, version: str) -> None:
        try:
            self._inspector.check(name, version, draft.file, draft.model_folder)
        except ModelFailed as error:
            raise InvalidModel(f"the model is not taken: {error.detail}") from error


async def _whole(task: asyncio.Task[T]) -> T:
    """To its end, also where the client has left: what clears up must not meet it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
