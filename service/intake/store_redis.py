"""Images kept in a Redis that several machines share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from redis import BlockingConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service.errors import ConfigurationError
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, identify, refuse_larger, unavailable
from service.values import StoredImage

PREFIX = "featuremaps:image:"
MAX_CONNECTIONS = 16
# An image's key has a colon after the owner, these two have none: they never meet.
_INDEX = PREFIX + "index"
_TOTAL = PREFIX + "total"

# The index is a sorted set of `<cost>:<key>` by expiry in milliseconds, the total the sum of these
# costs. Redis runs a script alone, so both stay true whoever else writes. Where the operator's
# eviction took one of the two the other is worth nothing, and counting begins anew.
_LEAVE = """
local image, index, total = KEYS[1], KEYS[2], KEYS[3]
local function leave(member)
  if redis.call('EXISTS', index, total) < 2 then redis.call('DEL', index, total) end
  if redis.call('ZREM', index, member) == 1 then
    redis.call('DECRBY', total, string.match(member, '^%d+'))
  end
end
"""
# The time is Redis': the machines' clocks may differ. HSET must be the first to write: a script
# that has written is no longer held to `maxmemory`.
_PUT = (
    _LEAVE
    + """
local body, media_type, width, height, age_ms, cost, max_bytes = unpack(ARGV)
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local expires_ms = string.format('%.0f', now_ms + age_ms)
local existed = redis.call('EXISTS', image)
redis.call('HSET', image, 'body', body, 'media_type', media_type, 'width', width, 'height', height,
  'size_bytes', #body, 'expires_ms', expires_ms)
redis.call('PEXPIREAT', image, expires_ms)
local member = cost .. ':' .. image
leave(member)
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', index, '-inf', string.format('%.0f', now_ms))) do
  leave(expired)
end
while redis.call('EXISTS', index) == 1 and redis.call('GET', total) + cost > tonumber(max_bytes) do
  local oldest = redis.call('ZRANGE', index, 0, 0)[1]
  redis.call('UNLINK', string.match(oldest, '^%d+:(.*)$'))
  leave(oldest)
end
redis.call('ZADD', index, expires_ms, member)
redis.call('INCRBY', total, cost)
return {existed, expires_ms}
"""
)
_DELETE = (
    _LEAVE
    + """
leave((redis.call('HSTRLEN', image, 'body') + ARGV[1]) .. ':' .. image)
return redis.call('UNLINK', image)
"""
)


class RedisStore:
    """The `ImageStore` of several replicas: a hash an image that Redis itself lets expire.

    The bound in bytes is kept by a script at every `put`, exact under concurrency. Redis takes up
    to a quarter more memory than it counts, and a few copies of an image while it arrives: let
    `maxmemory` be at least one and a half times `max_bytes`, since a Redis that is full refuses
    what is new before room is made here. Where Redis evicts by its own policy images are gone
    early, nothing worse. The script touches keys that it finds in the index, so a Redis Cluster
    will not do.
    """

    def __init__(self, url: str, *, max_bytes: int, max_age_s: float, timeout_s: float = 2.0) -> None:
        """Connect when first used, again after every failure.

        Args:
            url: `redis://`, `rediss://` or `unix://`; its query may set redis-py's options.
            max_bytes: of all images, each with `ENTRY_BYTES`.
            max_age_s: seconds until an image expires.
            timeout_s: longest wait in seconds for each of: a free connection, connecting, sending a
                whole request, each piece of an answer.

        Raises:
            ConfigurationError: the URL is none that redis-py takes.
        """
        self._max_bytes = max_bytes
        self._age_ms = max(1, round(max_age_s * 1000))
        self._pool = _pool(url, timeout_s)
        client: Redis = Redis(connection_pool=self._pool)
        self._client: Any = client  # redis-py's types answer for its asynchronous twin too
        self._put = client.register_script(_PUT)
        self._delete = client.register_script(_DELETE)

    def put(
        self, owner: str, body: bytes, *, media_type: str, width: int, height: int
    ) -> tuple[StoredImage, bool]:
        """See `ImageStore.put`."""
        refuse_larger(body, max_bytes=self._max_bytes)
        image_id = identify(body)
        cost = len(body) + ENTRY_BYTES
        with _refusals():
            existed, expires_ms = self._put(
                keys=[_key(owner, image_id), _INDEX, _TOTAL],
                args=[body, media_type, width, height, self._age_ms, cost, self._max_bytes],
            )
        image = StoredImage(image_id, body, media_type, width, height, int(expires_ms) / 1000)
        return image, not existed

    def get(self, owner: str, image_id: str) -> StoredImage | None:
        """See `ImageStore.get`."""
        facts = self._fields(owner, image_id, "media_type", "width", "height", "expires_ms", "body")
        if facts is None:
            return None
        media_type, width, height, expires_ms, body = facts
        return StoredImage(
            image_id, body, media_type.decode(), int(width), int(height), int(expires_ms) / 1000
        )

    def peek(self, owner: str, image_id: str) -> ImageRecord | None:
        """See `ImageStore.peek`."""
        facts = self._fields(owner, image_id, "media_type", "width", "height", "expires_ms", "size_bytes")
        if facts is None:
            return None
        media_type, width, height, expires_ms, size = facts
        return ImageRecord(
            image_id, media_type.decode(), int(width), int(height), int(size), int(expires_ms) / 1000
        )

    def delete(self, owner: str, image_id: str) -> bool:
        """See `ImageStore.delete`."""
        with _refusals():
            return bool(self._delete(keys=[_key(owner, image_id), _INDEX, _TOTAL], args=[ENTRY_BYTES]))

    def close(self) -> None:
        """See `ImageStore.close`."""
        self._pool.disconnect()

    def _fields(self, owner: str, image_id: str, *names: str) -> list[bytes] | None:
        with _refusals():
            values: list[bytes | None] = self._client.hmget(_key(owner, image_id), names)
        found = [value for value in values if value is not None]
        return found if len(found) == len(names) else None


def _key(owner: str, image_id: str) -> str:
    return f"{PREFIX}{quote(owner, safe='')}:{image_id}"


def _pool(url: str, timeout_s: float) -> BlockingConnectionPool:
    try:
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # The caller decides whether to try again; redis-py's own client tries ten times.
            retry=Retry(NoBackoff(), 0),
            # Lent connections are checked, so that a restart is not noticed; with version 3 not so.
            protocol=2,
        )
        pool.connection_class(**pool.connection_kwargs)  # connects nothing; refuses unknown options
    except (ValueError, TypeError, RedisError):
        # Without its cause: Python's text repeats pieces of the URL, possibly of the password.
        raise ConfigurationError(
            "the URL of the store of images is none that Redis' client takes; "
            "the form is redis://user:password@host:6379/0, with special characters percent-encoded"
        ) from None
    return pool


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise unavailable(error) from error
