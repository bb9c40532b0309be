"""The server's clock as this worker knows it: deadlines and ages are judged by it and by nothing else."""

from __future__ import annotations

import time


class ServerClock:
    """Server time, carried forward by the local monotonic clock from the last time the server told it."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    def set(self, now_ms: int) -> None:
        """Take over the server's time as it has just told it, in ms."""
        self._offset_ms = now_ms - time.monotonic() * 1000

    def now_ms(self) -> float:
        """Return the server's time now, in ms."""
        return self.at_ms(time.monotonic())

    def at_ms(self, monotonic: float) -> float:
        """Return the server's time, in ms, when the local monotonic clock showed so many seconds."""
        return monotonic * 1000 + self._offset_ms
