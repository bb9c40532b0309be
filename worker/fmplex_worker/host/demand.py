"""Interactive work as it stands, for whoever lends the device: what is due when, and what waits."""

from __future__ import annotations

import math

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.scheduling import CostModel, Demand, Due, Scheduler, TargetBook

# What these wait for is not the device.
_ELSEWHERE = frozenset({JobState.AWAITING_VERSION, JobState.AWAITING_PREPARATION, JobState.AWAITING_INPUT})
_NEVER = Due(-math.inf, 0.0)


class DemandReader:
    """Reads the demand from the jobs in hand and the targets of the vFMs in use."""

    def __init__(
        self, table: JobTable, clock: ServerClock, targets: TargetBook, cost: CostModel, scheduler: Scheduler
    ) -> None:
        self._table = table
        self._clock = clock
        self._targets = targets
        self._cost = cost
        self._scheduler = scheduler

    def read(self, now: float) -> Demand:
        """Return the demand; `now` in monotonic seconds, perhaps a moment to come: so without the jobs of passes that run."""
        backlog, expected = self._backlog_s(), self._targets.expected_s(now)
        if backlog > self._targets.loosest_s > 0:
            return Demand([_NEVER], backlog, expected)  # no need to look at thousands of jobs
        begin_ms = self._clock.at_ms(0.0)
        dues: list[Due] = []
        untargeted = False
        for job in self._table:
            if job.flow.cls != INTERACTIVE or job.ended or job.state is JobState.RUNNING:
                continue
            due = _due(job, self._targets.of(job.flow.vfm), begin_ms)
            waits = job.state not in _ELSEWHERE
            if due is None:
                untargeted = untargeted or waits
            elif waits or due.at > now:
                dues.append(due)
        return Demand(dues, backlog, expected, untargeted)

    def quiet(self, now: float) -> Demand:
        """Return the demand as it would be with nothing in hand."""
        return Demand(expected=self._targets.expected_s(now))

    def _backlog_s(self) -> float:
        """Predict how long the passes take that interactive work needs which is here, also what is not prepared yet."""
        budget = self._scheduler.budget
        waiting = max(self._table.waiting[INTERACTIVE], self._table.room.taken[INTERACTIVE])
        full, rest = divmod(waiting, budget)
        seconds = full * self._cost.predict_pass(budget) if full else 0.0
        return seconds + (self._cost.predict_pass(rest) if rest else 0.0)


def _due(job: ActiveJob, targets: Targets | None, begin_ms: float) -> Due | None:
    """Return what of a job is due next, on the monotonic clock, whose 0 was the server's `begin_ms`; None: it has no target."""
    if targets is None:
        return None
    if job.token_ms:
        target_ms, since_ms = targets.inter_token_ms, job.token_ms
        found = [(since_ms, target_ms, True)] if target_ms else []
    else:
        found = [(float(job.claimed.enqueued_ms), targets.ttft_ms, False)] if targets.ttft_ms else []
    if targets.latency_ms:
        found.append((float(job.claimed.enqueued_ms), targets.latency_ms, False))
    dues = [Due((since + target - begin_ms) / 1000, target / 1000, token) for since, target, token in found]
    return min(dues, default=None)
