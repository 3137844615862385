"""The workers of one service tell each other their metrics, so that whoever is asked answers for all.

Each has a Unix socket in a folder that only this service's user can enter; it writes its metrics to whoever
connects. Samples stay apart by the label `worker`, so nothing has to be added up here, and a worker that is
replaced begins at zero as Prometheus expects of a process.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from service.web.metrics import Metrics
from service.web.place import Place

# A worker that does not answer in time is left out, as one that is just being replaced.
LONGEST_WAIT_S = 2.0
log = logging.getLogger("featuremaps.metrics")


@asynccontextmanager
async def answering(place: Place, metrics: Metrics) -> AsyncIterator[None]:
    """Answer the others while the block runs."""
    if place.socket is None:
        yield
        return

    async def write(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(await asyncio.to_thread(metrics.dump))
            await writer.drain()
        finally:
            writer.close()

    place.socket.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(write, place.socket)
    try:
        yield
    finally:
        server.close()


async def ask_others(place: Place) -> Sequence[bytes]:
    """What the other workers publish, of those that answer."""
    told = await asyncio.gather(*(_ask(path) for path in place.others))
    return [each for each in told if each]


async def _ask(path: Path) -> bytes:
    try:
        async with asyncio.timeout(LONGEST_WAIT_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        log.info("worker %s does not tell its metrics: %s", path.stem, type(error).__name__)
        return b""
