"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

_WORTH_BYTES, _MOST_BYTES = 8 << 20, 1 << 30
_QUIET_S = 2.0
_M_ARENA_MAX = -8  # of mallopt, as malloc.h has it


class Trimmer:
    """Trimmer of the C heap: glibc keeps what is freed; after many bytes have been, it is asked to give them back. Elsewhere
    there is nothing to do.

    While versions come and go it is left alone: they take the same memory in turn, and giving it back costs every pass time.
    """

    def __init__(self) -> None:
        self._freed = 0
        self._last = 0.0
        self._malloc_trim = _c_function("malloc_trim")

    def freed(self, nbytes: int) -> None:
        """Note that so many bytes were freed."""
        self._freed += nbytes
        self._last = time.monotonic()

    def trim(self) -> None:
        """Give freed memory back, if there is much and it is quiet. Takes milliseconds; thread-safe."""
        quiet = time.monotonic() > self._last + _QUIET_S or self._freed >= _MOST_BYTES
        if self._freed >= _WORTH_BYTES and quiet and self._malloc_trim is not None:
            self._freed = 0
            self._malloc_trim(0)


def keep_one_heap() -> None:
    """Have all threads allocate from the one heap of which everything is given back: of a thread's own, glibc keeps what lies at
    its end, up to 64 MiB each. To be called before the first thread starts, where mostly one thread works at a time.
    """
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def _c_function(name: str) -> Callable[..., int] | None:
    """Find a function of glibc's; musl has none of these."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
