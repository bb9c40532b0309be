"""Redelivered jobs may have killed the worker that had them in hand. One at a time is prepared or in a pass, so that a death is
blamed on one job that may have caused it, and on no other that is under suspicion already."""

from __future__ import annotations

from collections.abc import Callable

from fmplex_worker.host.active_job import ActiveJob

Go = Callable[[ActiveJob], None]


class Quarantine:
    """Gives redelivered jobs their turns: from the beginning of a job's preparation to the end of its pass, and then for a pass
    at a time. Others may be in that pass if it is a text that grows; before that it runs alone."""

    def __init__(self) -> None:
        self._turn: ActiveJob | None = None
        self._waiting: dict[str, tuple[ActiveJob, Go]] = {}  # in order

    def admit(self, job: ActiveJob, go: Go) -> bool:
        """Tell whether a job may go on now. A redelivered one may have to wait: `go(job)` is called when its turn comes."""
        if not job.redelivered or self._turn is job:
            return True
        if self._turn is None:
            self._turn = job
            return True
        self._waiting[job.key] = job, go
        return False

    def leave(self, job: ActiveJob) -> None:
        """Take a job out, whose pass has ended or which goes into none now, and let the next one go: of another vFM if there is
        one, so that a vFM whose jobs take long has its turn between those of others."""
        self._waiting.pop(job.key, None)
        if self._turn is not job:
            return
        self._turn = None
        others = (key for key, (other, _) in self._waiting.items() if other.flow.vfm != job.flow.vfm)
        key = next(others, next(iter(self._waiting), None))
        if key is not None:
            following, go = self._waiting.pop(key)
            self._turn = following
            go(following)
