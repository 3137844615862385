"""Models that come over HTTP: written, checked, and only then given a name."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine.draft import Draft
from service.engine.inspector import Inspector
from service.errors import InvalidModel, MalformedRequest, ModelFailed, Overloaded
from service.pipeline.stopwatch import Stopwatch

InThread = Callable[..., Awaitable[Any]]
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

    def __init__(self, paths: Sequence[Path], inspector: Inspector, in_thread: InThread) -> None:
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
            making = asyncio.create_task(self._run(Draft, self._paths, name, version))
            try:
                draft = await _whole(making)
            except asyncio.CancelledError:
                if not making.cancelled() and making.exception() is None:
                    await self._run(making.result().drop)
                raise
            try:
                return await self._kept(draft, name, version, parts)
            finally:
                await asyncio.shield(self._run(draft.drop))
        finally:
            self._is_busy = False

    @property
    def largest_bytes(self) -> int:
        """Of one model."""
        return self._inspector.limits.model_bytes

    async def _kept(self, draft: Draft, name: str, version: str, parts: AsyncIterable[bytes]) -> Uploaded:
        async for part in parts:
            await self._run(draft.write, part)
        if not draft.size:
            raise MalformedRequest("the body is empty: send the bytes of an ONNX file")
        await self._run(draft.finish)
        await self._run(self._check, draft, name, version)
        await _whole(asyncio.create_task(self._run(draft.keep)))
        return Uploaded(name, version, draft.digest, draft.size)

    def _check(self, draft: Draft, name: str, version: str) -> None:
        try:
            self._inspector.check(name, version, draft.file, draft.model_folder)
        except ModelFailed as error:
            raise InvalidModel(f"the model is not taken: {error.detail}") from error

    async def _run(self, work: Callable[..., Any], *given: Any) -> Any:
        """In a thread."""
        return await self._in_thread(Stopwatch(), work, *given)


async def _whole(task: asyncio.Task[Any]) -> Any:
    """To its end, also where the client has left: what clears up must not meet it."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
