"""Redelivered jobs may have killed the worker they ran on. One at a time shares passes with others, so that a death beside them
is blamed on one job that may have caused it, and on nobody else."""

from __future__ import annotations

from fmplex_worker.host.jobs import ActiveJob


def suspect(held: ActiveJob) -> bool:
    """Whether a worker has died while it ran."""
    return held.job.attempts > 1


class Quarantine:
    """Those that grow token by token take turns of a pass; before that, they run alone."""

    def __init__(self) -> None:
        self._turn: str | None = None  # whose it is
        self._waiting: dict[str, ActiveJob] = {}  # in order

    def may_go(self, held: ActiveJob) -> bool:
        """Whether it may be in a pass now; if not, it waits for its turn."""
        if not suspect(held):
            return True
        if self._turn in (None, held.key):
            self._turn = held.key
            return True
        self._waiting[held.key] = held
        return False

    def leave(self, held: ActiveJob) -> ActiveJob | None:
        """Its pass has ended, or it is in none any more; whose turn it is now, if that changes."""
        self._waiting.pop(held.key, None)
        if self._turn != held.key:
            return None
        self._turn = next(iter(self._waiting), None)
        return None if self._turn is None else self._waiting.pop(self._turn)
