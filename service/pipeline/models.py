"""The catalogue with its blocking calls in threads of their own."""

import asyncio
import logging
from functools import partial

from service.engine.catalog import Catalog
from service.engine.loaded import LoadedModel
from service.errors import ModelError, NotReady
from service.pipeline.pools import InStage
from service.pipeline.shared import SingleFlight

log = logging.getLogger("featuremaps.models")


class Models:
    """Lives on the event loop.

    However many wait for one model, it takes one thread, so that others load beside it.
    """

    def __init__(self, catalog: Catalog, in_thread: InStage) -> None:
        self._catalog = catalog
        self._in_thread = in_thread
        self._loading = SingleFlight()

    async def get(self, name: str, version: str | None) -> LoadedModel:
        """The model, loading it where it is not.

        Raises:
            ModelNotFound, VersionNotFound, ModelFailed, NotReady
        """
        entry = self._catalog.entry(name)
        while (loading := entry.loading(version)) is not None:
            # Begun under another name of the version, or for somebody who has left: a thread would only wait.
            await asyncio.wait([asyncio.wrap_future(loading)])
        if (ready := entry.peek(version)) is not None:
            return ready
        return await self._loading.join((name, version), partial(self._get, name, version))

    async def load_all(self) -> None:
        """Load every model's default version, one after another; cancelled, none is begun any more."""
        for name in self._catalog.entries:
            try:
                await self.get(name, None)
            except ModelError:
                log.warning("model %s failed: %s", name, self._catalog.entry(name).summary().reason)
            except NotReady:
                log.info("model %s was unloaded before it was loaded", name)

    async def load(self, name: str) -> LoadedModel:
        """Look for a model's versions anew and load it.

        Raises:
            ModelNotFound, ModelFailed
        """
        return await self._in_thread(self._catalog.load, name)

    async def unload(self, name: str) -> None:
        """Stop serving a model.

        Raises:
            ModelNotFound
        """
        await self._in_thread(self._catalog.unload, name)

    async def _get(self, name: str, version: str | None) -> LoadedModel:
        return await self._in_thread(self._catalog.get, name, version)
