"""The arena: one stretch of memory, asked for once and handed out in pieces that are used again."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

_STEP = 1 << 20  # bytes touched at once, for a few milliseconds at most


class Arena:
    """`size` bytes on a device. Pieces come from the smallest hole that holds them, of equal ones from the first, so that memory
    which was used before is used again. Raises `RuntimeError` (torch.OutOfMemoryError on a GPU) if there is not so much memory.

    An operating system finds memory when it is first touched, which takes it 0.3 to 2.5 s a GB: a pass that grows into fresh
    memory would wait for that. So `touch_all` does it beside the passes; before, nothing is taken from the system.

    `allocate` and `free` are to be called with `lock` held.
    """

    def __init__(self, size: int, device: torch.device, lock: threading.RLock) -> None:
        self.size = size
        self._data = torch.empty(size, dtype=torch.uint8, device=device)
        self._holes = {0: size}  # start -> length; no two of them touch
        self._ends = {size: 0}  # end -> start
        self._top = 0  # nothing was ever allocated beyond it
        self._toucher: threading.Thread | None = None
        self._lock = lock

    def allocate(self, nbytes: int) -> tuple[int, Tensor] | None:
        """Allocate a piece; return where it begins, and its bytes `[nbytes]` uint8. None if no hole is large enough."""
        fitting = [(length, start) for start, length in self._holes.items() if length >= nbytes]
        if not fitting:
            return None
        length, start = min(fitting)
        self._cut(start, length)
        if length > nbytes:
            self._add(start + nbytes, length - nbytes)
        self._top = max(self._top, start + nbytes)
        return start, self._data[start : start + nbytes]

    def free(self, start: int, nbytes: int) -> None:
        """Free a piece that nobody reads or writes any more."""
        end = start + nbytes
        if (before := self._ends.get(start)) is not None:
            self._cut(before, start - before)
            start = before
        if (after := self._holes.get(end)) is not None:
            self._cut(end, after)
            end += after
        self._add(start, end - start)

    def _add(self, start: int, length: int) -> None:
        self._holes[start] = length
        self._ends[start + length] = start

    def _cut(self, start: int, length: int) -> None:
        del self._holes[start], self._ends[start + length]

    def touch_all(self) -> None:
        """Take all memory from the system, in the background; once, however often it is called."""
        if self._toucher is None and self._data.device.type == "cpu":
            self._toucher = threading.Thread(target=self._touch, name="fmplex-kv")
            self._toucher.start()

    def _touch(self) -> None:
        at = 0
        while at < self.size and threading.main_thread().is_alive():  # a process that ends does not wait for it
            with self._lock:
                at = max(at, self._top)  # what was allocated is touched by its use
                self._data[at : at + _STEP].zero_()
            at += _STEP
