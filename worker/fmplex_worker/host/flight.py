"""A pass on its way through the device thread."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.protocol import Outcome
from fmplex_worker.scheduling import Plan


@dataclass(slots=True)
class Flight:
    """A launched pass: its plan, the job of each item of the plan, and its outcome to come. It is expected to end at `ends`, and
    the pass behind it has to be made when it is `due` (monotonic seconds)."""

    plan: Plan
    jobs: list[ActiveJob]
    outcome: asyncio.Future[Outcome]
    ends: float = 0.0
    due: float = 0.0

    @property
    def blamed(self) -> list[ActiveJob]:
        """Jobs to blame if the worker dies during this pass: the redelivered ones, else all."""
        return [job for job in self.jobs if job.redelivered] or self.jobs

    @property
    def grows(self) -> bool:
        """Whether texts go on growing after it: the pass behind it is for their next tokens too, so it cannot be made before."""
        return any(job.prepared.memory for job in self.jobs)
