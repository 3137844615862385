"""Keys: who is asking, and what they may do. A key is a bearer token of which only the SHA-256 is stored."""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.errors import ConfigurationError

Scope = Literal["infer", "admin"]
ENTRY = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,99}):([a-z+]+):([0-9a-f]{64})")
INFER: Scope = "infer"
ADMIN: Scope = "admin"
# What each scope includes.
SCOPES: Mapping[str, frozenset[Scope]] = {INFER: frozenset({INFER}), ADMIN: frozenset({INFER, ADMIN})}
TOKEN_BYTES = 32
# So that scanners for leaked secrets can tell what they found.
TOKEN_PREFIX = "featuremaps_"  # noqa: S105
LOOK_EVERY_S = 1.0
LARGEST_FILE_BYTES = 1 << 20
log = logging.getLogger("featuremaps.keys")


@dataclass(frozen=True)
class Caller:
    """Whoever sends a request: the name of their key, "" without one, and what they may do."""

    name: str
    scopes: frozenset[Scope]


NOBODY = Caller("", frozenset())


@dataclass(frozen=True)
class Key:
    """A stored key: `digest` is the SHA-256 of its token. Keys of one name are one caller's."""

    caller: Caller
    digest: bytes


class KeyRing:
    """All keys: those given, and those of a file that may change while the service runs."""

    def __init__(self, given: Sequence[str], file: Path | None = None) -> None:
        """Raises:
        ConfigurationError: an entry is ill-formed, the file cannot be read, or there is no key at all.
        """
        self._given = read_keys(given)
        self._file = file
        self._state: tuple[int, ...] = ()
        self._from_file: tuple[Key, ...] = ()
        self._looked = time.monotonic()
        if file is not None:
            # In this order: what changes while it is read is then read again.
            self._state, self._from_file = _state(file), _read_file(file)
        if not (self._given or self._from_file):
            raise ConfigurationError(f"{file} holds no key; `featuremaps key NAME` makes one")

    def find(self, token: str) -> Caller | None:
        """Whose token it is. Every key is compared, each in constant time, so that nothing can be told
        from how long it takes; digests are of one length, whatever the token's.
        """
        self._look()
        digest = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for key in (*self._given, *self._from_file):
            if hmac.compare_digest(key.digest, digest):
                found = key.caller
        return found

    def _look(self) -> None:
        """Read a file that has changed anew; where it cannot be read, the keys stay as they were."""
        now = time.monotonic()
        if self._file is None or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if (state := _state(self._file)) == self._state:
            return
        self._state = state
        try:
            self._from_file = _read_file(self._file)
        except ConfigurationError as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("%d keys were read from %s", len(self._from_file), self._file)


def read_keys(entries: Iterable[str]) -> tuple[Key, ...]:
    """Keys as they are stored: `name:scopes:sha256`, several scopes joined by `+`.

    Raises:
        ConfigurationError: ill-formed; the entry itself is not repeated, since it may be a token.
    """
    keys = []
    for i, entry in enumerate(entries, 1):
        match = ENTRY.fullmatch(entry)
        scopes = match[2].split("+") if match else []
        if match is None or not set(scopes) <= SCOPES.keys():
            raise ConfigurationError(
                f"key {i} is not name:scope:sha256 with a scope of {', '.join(SCOPES)} and 64 hex digits; "
                "`featuremaps key NAME` makes one"
            )
        allowed = frozenset().union(*(SCOPES[scope] for scope in scopes))
        keys.append(Key(Caller(match[1], allowed), bytes.fromhex(match[3])))
    return tuple(keys)


def make_key(name: str, scope: str) -> tuple[str, str]:
    """A fresh token, which is shown once, and the line to store.

    Raises:
        ConfigurationError: the name cannot stand in a line.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    line = f"{name}:{scope}:{hashlib.sha256(token.encode()).hexdigest()}"
    if ENTRY.fullmatch(line) is None:
        raise ConfigurationError(f"{name!r} is no name for a key: letters, digits, dots, dashes, _ and @")
    return token, line


def _read_file(file: Path) -> tuple[Key, ...]:
    """One key a line; empty lines and those that begin with # say nothing."""
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST_FILE_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read as a file of keys") from error
    if len(text) > LARGEST_FILE_BYTES:
        raise ConfigurationError(f"{file} is too long for a file of keys")
    lines = [line.strip() for line in text.splitlines()]
    try:
        return read_keys(line for line in lines if line and not line.startswith("#"))
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _state(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size
