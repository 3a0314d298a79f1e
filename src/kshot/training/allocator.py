"""Memory that one step frees, kept for the next."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # mallopt's names of them, in <malloc.h>
_KEEPING = {_TRIM_THRESHOLD: -1, _TOP_PAD: 64 << 20, _MMAP_THRESHOLD: 1 << 30}
_USUAL = {_TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 128 << 10, _MMAP_THRESHOLD: 32 << 20}  # where glibc's own thresholds grow to


@contextmanager
def kept_memory(wanted: bool = True) -> Iterator[bool]:
    """Have the C library keep freed memory while the context lasts; afterwards return it to the system.

    By default glibc maps every large tensor anew and unmaps it when it is freed, and the system clears each page of it again:
    in a training step, which frees and asks for the same sizes over and over, up to a fifth of the time. The peak of the
    process's memory stays as it is; it does not shrink between the steps.

    Args:
        wanted: whether to do so at all.

    Yields:
        Whether it is done: not where the C library has no such switch, nor where the environment sets its allocator
        (``MALLOC_*``, ``GLIBC_TUNABLES``, ``LD_PRELOAD``).
    """
    libc = _allocator() if wanted else None
    if libc is None:
        yield False
        return
    try:
        for name, value in _KEEPING.items():
            libc.mallopt(name, value)
        yield True
    finally:
        for name, value in _USUAL.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


def _allocator() -> ctypes.CDLL | None:
    """Return glibc, unless there is another C library or the user has set up the allocator."""
    if os.name != "posix" or any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("mallopt", "malloc_trim", "gnu_get_libc_version")) else None
