"""Waiting for a batch, or what else ends by itself: how often to look, for how long, and the bar that shows how far it is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fmplex.batches.records import BatchInfo
from fmplex_broker.errors import Unavailable

_SOONEST_S, _LATEST_S = 0.1, 5.0  # until the next look
_AWAY_S = 600.0  # that the gateway may be away; the batch goes on meanwhile


class Waiting:
    """Waits for the end of something on a fleet for at most `timeout` seconds, None: until it ends. `progress`: draw a bar on
    standard error."""

    def __init__(self, timeout: float | None, progress: bool) -> None:
        self._begun = self._heard = time.monotonic()
        self._timeout = timeout
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TextColumn("ETA"), TimeRemainingColumn(), TimeElapsedColumn(), TextColumn("{task.fields[failed]}", style="red"),
            console=Console(stderr=True), redirect_stdout=False, disable=not progress,
        )  # fmt: skip
        self._task = self._bar.add_task("validating", total=None, rate="", failed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def heard(self, name: str, *, ended: bool) -> bool:
        """Take that the gateway has answered, and whether what is waited for has ended; return that. Raises `TimeoutError`."""
        self._heard = time.monotonic()
        if not ended:
            self._in_time(name)
        return ended

    def missed(self, name: str, e: Unavailable) -> None:
        """Take that the gateway did not answer. Raises the error when that has lasted, or `TimeoutError`."""
        self._in_time(name)
        if time.monotonic() - self._heard > _AWAY_S:
            raise e

    def pause_s(self) -> float:
        """Return the seconds until the next look: the longer it takes, the more."""
        passed = time.monotonic() - self._begun
        left = _LATEST_S if self._timeout is None else max(0.0, self._timeout - passed)
        return min(max(_SOONEST_S, passed / 100), _LATEST_S, left)

    def _in_time(self, name: str) -> None:
        if self._timeout is not None and time.monotonic() - self._begun >= self._timeout:
            raise TimeoutError(f"{name} has not ended within {self._timeout} s; it goes on")


class Watch(Waiting):
    """Watches one batch: lines a second, the time that is left, and how many have failed."""

    def saw(self, info: BatchInfo) -> bool:
        """Take the batch as it is now; return whether it has ended. Raises `TimeoutError`."""
        counts = info.request_counts
        done = counts.completed + counts.failed
        self._bar.update(
            self._task, description=info.status, total=counts.total or None, completed=done,
            failed=f"{counts.failed} failed" if counts.failed else "",
        )  # fmt: skip
        if (speed := self._bar.tasks[0].speed) is not None:
            self._bar.update(self._task, rate=f"{speed:.1f}/s")
        return self.heard(info.id, ended=info.ended)
