"""Redelivered jobs may have killed the worker they ran on. One at a time shares passes with others, so that a death beside them
is blamed on one job that may have caused it, and on nobody else."""

from __future__ import annotations

from fmplex_worker.host.active_job import ActiveJob


class Quarantine:
    """Lets one redelivered text at a time decode beside others; before they decode, redelivered jobs run alone."""

    def __init__(self) -> None:
        self._turn: str | None = None  # key of the job whose turn it is
        self._waiting: dict[str, ActiveJob] = {}  # in order

    def admit(self, job: ActiveJob) -> bool:
        """Tell whether a job may share a pass now; a redelivered one may have to wait for its turn, and is kept in order."""
        if not job.redelivered:
            return True
        if self._turn in (None, job.key):
            self._turn = job.key
            return True
        self._waiting[job.key] = job
        return False

    def leave(self, job: ActiveJob) -> ActiveJob | None:
        """Take a job out, whose pass has ended or which is in none any more; return whose turn it is now, if that changes."""
        self._waiting.pop(job.key, None)
        if self._turn != job.key:
            return None
        self._turn = next(iter(self._waiting), None)
        return None if self._turn is None else self._waiting.pop(self._turn)
