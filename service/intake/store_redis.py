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
from service.intake.store_entry import ENTRY_BYTES, ImageRecord, StoreUsage, identify, unavailable
from service.values import StoredImage

PREFIX = "featuremaps:image:"
MAX_CONNECTIONS = 16
# A quoted owner has no slash, so this is no image's key, and neither are the indexes.
_OWNERS = PREFIX + "/owners"

# `/owners` is a sorted set of owners by the bytes that their images count, `/owners/<owner>` one of
# `<cost>:<image's key>` by expiry in milliseconds. Redis runs a script alone, so both stay true whoever
# else writes. Where one of the two was lost, the owner's images are no longer counted. The time is
# Redis', because the machines' clocks may differ.
_COUNTING = """
local owners = KEYS[1]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local function index_of(owner)
  return owners .. '/' .. owner
end
local function forget(owner, entry)
  if redis.call('ZSCORE', owners, owner) and redis.call('ZREM', index_of(owner), entry) == 1 then
    local cost = string.match(entry, '^%d+')
    redis.call('ZINCRBY', owners, -cost, owner)
    return cost
  end
  return 0
end
local function forget_expired()
  local images, total = 0, 0
  for _, owner in ipairs(redis.call('ZRANGE', owners, 0, -1)) do
    for _, entry in ipairs(redis.call('ZRANGEBYSCORE', index_of(owner), '-inf', now_ms)) do
      forget(owner, entry)
    end
    local left = redis.call('ZCARD', index_of(owner))
    if left == 0 then redis.call('ZREM', owners, owner) end
    images = images + left
    total = total + (redis.call('ZSCORE', owners, owner) or 0)
  end
  return images, total
end
"""
# HSET must be the first to write: a script that has written is no longer held to `maxmemory`.
_PUT = """
local image, owner, body, media_type, width, height = KEYS[2], unpack(ARGV, 1, 5)
local age_ms, cost, max_bytes = unpack(ARGV, 6)
local expires_ms = now_ms + age_ms
local existed = redis.call('EXISTS', image)
redis.call('HSET', image, 'body', body, 'media_type', media_type, 'width', width, 'height', height,
  'size_bytes', #body, 'expires_ms', expires_ms)
redis.call('PEXPIREAT', image, expires_ms)
local _, total = forget_expired()
if redis.call('ZADD', owners, 'NX', 0, owner) == 1 then redis.call('DEL', index_of(owner)) end
local entry = cost .. ':' .. image
total = total - forget(owner, entry)
local share = max_bytes / redis.call('ZCARD', owners)
while total + cost > tonumber(max_bytes) do
  local held = tonumber(redis.call('ZSCORE', owners, owner))
  local loser = owner
  if held == 0 or held + cost <= share then loser = redis.call('ZREVRANGE', owners, 0, 0)[1] end
  local oldest = redis.call('ZRANGE', index_of(loser), 0, 0)[1]
  redis.call('UNLINK', string.match(oldest, '^%d+:(.*)$'))
  total = total - forget(loser, oldest)
end
redis.call('ZADD', index_of(owner), expires_ms, entry)
redis.call('ZINCRBY', owners, cost, owner)
return {existed, expires_ms}
"""
_DELETE = """
local owner, entry_bytes = unpack(ARGV)
forget(owner, (redis.call('HSTRLEN', KEYS[2], 'body') + entry_bytes) .. ':' .. KEYS[2])
return redis.call('UNLINK', KEYS[2])
"""
_USAGE = "return {forget_expired()}"


class RedisStore:
    """The `ImageStore` of several replicas: a hash an image that Redis itself lets expire.

    A script keeps the budget at every `put`, exact under concurrency. Redis takes up to a quarter
    more memory than it counts, and a few copies of an image while it arrives: set `maxmemory` to at
    least one and a half times `max_bytes`, since a full Redis refuses an image before the script
    makes room. Set `maxmemory-policy noeviction`: any other policy may evict the counters of rate
    limits, which expire as images do. The scripts touch keys that they find in an index, so Redis
    Cluster is not supported.
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
        self._put = client.register_script(_COUNTING + _PUT)
        self._delete = client.register_script(_COUNTING + _DELETE)
        self._usage = client.register_script(_COUNTING + _USAGE)

    def put(
        self, owner: str, body: bytes, *, media_type: str, width: int, height: int
    ) -> tuple[StoredImage, bool]:
        """See `ImageStore.put`."""
        image_id = identify(body, max_bytes=self._max_bytes)
        cost = len(body) + ENTRY_BYTES
        with _refusals():
            existed, expires_ms = self._put(
                keys=[_OWNERS, _key(owner, image_id)],
                args=[owner, body, media_type, width, height, self._age_ms, cost, self._max_bytes],
            )
        return StoredImage(image_id, body, media_type, width, height, expires_ms / 1000), not existed

    def get(self, owner: str, image_id: str) -> StoredImage | None:
        """See `ImageStore.get`."""
        found = self._found("body", owner, image_id)
        return None if found is None else StoredImage(image_id, *found)

    def peek(self, owner: str, image_id: str) -> ImageRecord | None:
        """See `ImageStore.peek`."""
        found = self._found("size_bytes", owner, image_id)
        return None if found is None else ImageRecord(image_id, int(found[0]), *found[1:])

    def delete(self, owner: str, image_id: str) -> bool:
        """See `ImageStore.delete`."""
        with _refusals():
            keys = [_OWNERS, _key(owner, image_id)]
            return bool(self._delete(keys=keys, args=[owner, ENTRY_BYTES]))

    def usage(self) -> StoreUsage:
        """See `ImageStore.usage`."""
        with _refusals():
            images, stored_bytes = self._usage(keys=[_OWNERS])
        return StoreUsage(images, stored_bytes)

    def close(self) -> None:
        """See `ImageStore.close`."""
        self._pool.disconnect()

    def _found(self, field: str, owner: str, image_id: str) -> tuple[bytes, str, int, int, float] | None:
        fields = (field, "media_type", "width", "height", "expires_ms")
        with _refusals():
            values: list[Any] = self._client.hmget(_key(owner, image_id), fields)
        if None in values:
            return None
        value, media_type, width, height, expires_ms = values
        return value, media_type.decode(), int(width), int(height), int(expires_ms) / 1000


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
