"""The deadlines of a worker's jobs, soonest first."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.job_state import JobState

_SLACK = 1024  # entries of ended jobs that may lie in the heap beyond the number of those that live


class DeadlineHeap:
    """Deadlines in ms of server time. Jobs that have ended stay in the heap until they surface, or too many have gathered."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []

    def add(self, deadline_ms: int, key: str) -> None:
        """Watch the deadline of one more job."""
        heapq.heappush(self._heap, (deadline_ms, key))

    def pop(self, jobs: Mapping[str, ActiveJob], now_ms: float, ahead_ms: float) -> list[ActiveJob]:
        """Take out and return the jobs that are late: see `JobTable.expired`."""
        late, later = [], []
        while self._heap and self._heap[0][0] <= now_ms + ahead_ms:
            entry = heapq.heappop(self._heap)
            job = jobs.get(entry[1])
            if job is None or job.ended:
                continue
            ahead = job.flow.cls == INTERACTIVE and not job.begun
            if job.state is not JobState.RUNNING and (ahead or entry[0] <= now_ms):
                late.append(job)
            else:
                later.append(entry)
        for entry in later:
            heapq.heappush(self._heap, entry)
        return late

    def prune(self, jobs: Mapping[str, ActiveJob]) -> None:
        """Drop the deadlines of jobs that are gone, once there are many: most are answered long before theirs."""
        if len(self._heap) > 2 * len(jobs) + _SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in jobs]
            heapq.heapify(self._heap)
