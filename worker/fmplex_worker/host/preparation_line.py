"""The line of jobs that are prepared by themselves. Pure: seconds are passed in."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from fmplex_broker.wire.messages import Flow, Request
from fmplex_worker.host.active_job import ActiveJob


class Turn(NamedTuple):
    """A job and its request, which are to be prepared by themselves."""

    job: ActiveJob
    request: Request


class PreparationLine:
    """Jobs by vFM. At most `most` vFMs are at it at a time, each with one job: of those that wait the one which has taken the
    least time, so that what takes long keeps nobody waiting but more of its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, deque[Turn]] = {}
        self._busy: set[str] = set()
        self._spent: dict[str, float] = {}  # seconds, of the vFMs that are busy or wait

    def add(self, turn: Turn) -> None:
        """Put a job last in its vFM's line."""
        vfm = turn.job.flow.vfm
        # Who comes, or comes back, has spent as much as the one that is served next: nobody saves up.
        self._spent.setdefault(vfm, min(self._spent.values(), default=0.0))
        self._waiting.setdefault(vfm, deque()).append(turn)

    def next(self) -> Turn | None:
        """Take out the job that is to be prepared next; None if there is none now."""
        while len(self._busy) < self._most:
            ready = (vfm for vfm in self._waiting if vfm not in self._busy)
            vfm = min(ready, key=self._spent.__getitem__, default=None)
            if vfm is None:
                break
            turn = self._waiting[vfm].popleft()
            if not self._waiting[vfm]:
                del self._waiting[vfm]
            if not turn.job.ended:
                self._busy.add(vfm)
                return turn
            self._forget(vfm)
        return None

    def ended(self, vfm: str, seconds: float) -> None:
        """Note that the job of a vFM which was at it has been prepared, in so many seconds."""
        self._busy.discard(vfm)
        self._spent[vfm] += seconds
        self._forget(vfm)

    @property
    def flows(self) -> set[Flow]:
        """Flows of which jobs wait here."""
        return {turn.job.flow for turns in self._waiting.values() for turn in turns if not turn.job.ended}

    def _forget(self, vfm: str) -> None:
        if vfm not in self._busy and vfm not in self._waiting:
            self._spent.pop(vfm, None)
