"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable

_WORTH_BYTES, _MOST_BYTES = 8 << 20, 1 << 30
_QUIET_S = 2.0


class Trimmer:
    """Trimmer of the C heap: glibc keeps what is freed; after many bytes have been, it is asked to give them back. Elsewhere
    there is nothing to do.

    While versions come and go it is left alone: they take the same memory in turn, and giving it back costs every pass time.
    """

    def __init__(self) -> None:
        self._freed = 0
        self._last = 0.0
        self._malloc_trim = _malloc_trim()

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


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
