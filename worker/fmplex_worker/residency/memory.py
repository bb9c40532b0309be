"""Giving freed memory back to the operating system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_WORTH_BYTES = 8 << 20


class Trimmer:
    """glibc keeps what is freed; after many bytes have been, it is asked to give them back. Elsewhere: nothing to do."""

    def __init__(self) -> None:
        self._freed = 0
        self._malloc_trim = _malloc_trim()

    def freed(self, nbytes: int) -> None:
        self._freed += nbytes

    def trim(self) -> None:
        """Milliseconds; any thread."""
        if self._freed >= _WORTH_BYTES and self._malloc_trim is not None:
            self._freed = 0
            self._malloc_trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
