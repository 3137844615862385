"""Giving memory back that was freed: glibc keeps what compiling left, three times a model's weights."""

import contextlib
import ctypes
from functools import cache
from typing import Any

# Trimming walks the whole heap, some milliseconds; not worth it for less.
WORTH_TRIMMING_BYTES = 4 << 20
M_ARENA_MAX = -8  # malloc.h


def share_heap() -> None:
    """Let all threads share one heap (mallopt(3)); to be called before there are several.

    Each thread's own would keep what was freed at its end for ever: some thirty megabytes, which is as much
    as answers are.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_ARENA_MAX, 1)


def release_freed(garbage_bytes: int = WORTH_TRIMMING_BYTES) -> None:
    """Return freed pages to the system after work that left about so much garbage (malloc_trim(3))."""
    if garbage_bytes >= WORTH_TRIMMING_BYTES and (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """None where the C library is another one."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        return libc if libc.malloc_trim and libc.gnu_get_libc_version else None
    return None
