"""How often each caller may ask. The library `limits` counts, in memory or in a Redis that replicas share."""

import ipaddress
import logging
import math
import time
from collections import OrderedDict

import limits
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter as SharedLimiter
from limits.errors import StorageError
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from redis.asyncio import ConnectionPool

from service.errors import ConfigurationError, RateLimited

# Callers without keys are told apart by their address, of which there is any number: the one who has
# been away longest is forgotten.
MOST_CALLERS = 4096
REDIS_TIMEOUT_S = 0.5
# After a failure nobody waits for Redis for a while; meanwhile this process counts by itself.
AWAY_S = 5.0
# Whoever has an address of IPv6 has all those that share these bits.
IPV6_SITE_BITS = 64
log = logging.getLogger("featuremaps.rates")


class Rates:
    """Counts in windows of fixed length, that begin with a caller's first request."""

    def __init__(self, rate: str, store: str = "", workers: int = 1) -> None:
        """`rate` such as `100/minute` or `5/second`, `store` the URL of a Redis, "" for none.

        Where several workers count, each alone allows its part.

        Raises:
            ConfigurationError
        """
        self._rate = _parsed(rate)
        self._part = type(self._rate)(max(1, self._rate.amount // workers), self._rate.multiples)
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._known: OrderedDict[str, None] = OrderedDict()
        self._connections = _connections(store) if store else None
        self._shared = _shared(store, self._connections) if self._connections else None
        self._away_until = 0.0

    async def take(self, caller: str) -> None:
        """Count one request.

        Raises:
            RateLimited: it is one too many.
        """
        rate, reset_at = self._rate, await self._hit_shared(caller)
        if reset_at is None:
            rate, reset_at = self._part, self._hit(caller)
        if reset_at:
            wait_s = max(math.ceil(reset_at - time.time()), 1)
            raise RateLimited(
                f"more than {rate} were sent; the next is taken in {wait_s} s",
                retry_after_s=wait_s,
                limit=rate.amount,
            )

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._connections is not None:
            await self._connections.aclose()

    def _hit(self, caller: str) -> float:
        """When the window ends, seconds since 1970, where this was one too many; else 0."""
        self._known[caller] = None
        self._known.move_to_end(caller)
        if len(self._known) > MOST_CALLERS:
            self._memory.clear(self._part, self._known.popitem(last=False)[0])
        if self._memory.hit(self._part, caller):
            return 0.0
        return self._memory.get_window_stats(self._part, caller).reset_time

    async def _hit_shared(self, caller: str) -> float | None:
        """The same among all replicas; None where that cannot be told."""
        if self._shared is None or time.monotonic() < self._away_until:
            return None
        try:
            if await self._shared.hit(self._rate, caller):
                return 0.0
            return (await self._shared.get_window_stats(self._rate, caller)).reset_time
        except (StorageError, OSError) as error:
            log.warning("rates are counted by each process alone: %s", type(error).__name__)
            self._away_until = time.monotonic() + AWAY_S
            return None


def address_of(client: str) -> str:
    """Whom an address stands for: itself, or its site where there are more addresses than sand."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return client[:100]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), IPV6_SITE_BITS), strict=False))
    return str(address)


def _parsed(rate: str) -> limits.RateLimitItem:
    try:
        # The library takes several, and of those only the first would count.
        (found,) = limits.parse_many(rate)
        if found.amount > 0:
            return found
    except ValueError:
        pass
    raise ConfigurationError(f"rate_limit is one rate like 100/minute or 5/second, not {rate!r}")


def _connections(url: str) -> ConnectionPool:
    if not url.startswith(("redis://", "rediss://")):
        raise ConfigurationError("rate_limit_store is redis:// or rediss://, nothing else")
    return ConnectionPool.from_url(
        url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S
    )


def _shared(url: str, connections: ConnectionPool) -> SharedLimiter:
    storage = RedisStorage(
        f"async+{url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix="featuremaps:rates",
        connection_pool=connections,  # type: ignore[arg-type]  # Not among its types, but in its manual.
    )
    return SharedLimiter(storage)
