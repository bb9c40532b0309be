"""Interactive work as it stands, for whoever lends the device: what is due when, and what waits."""

from __future__ import annotations

import math

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.job_state import ENDS, JobState
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
        oldest: dict[str, int] = {}  # that waits for its first pass, of each vFM: the others of it have more time
        others: list[ActiveJob] = []
        for job in self._table:
            state, flow = job.state, job.claimed.flow
            if state is JobState.RUNNING or state in ENDS or flow.cls != INTERACTIVE:
                continue
            if job.token_ms or state in _ELSEWHERE:
                others.append(job)
            elif job.enqueued_ms < oldest.get(flow.vfm, math.inf):
                oldest[flow.vfm] = job.enqueued_ms
        begin_ms, of = self._clock.at_ms(0.0), self._targets.of
        found = [_due(of(vfm), since_ms, 0.0, begin_ms) for vfm, since_ms in oldest.items()]
        for job in others:
            due = _due(of(job.flow.vfm), job.enqueued_ms, job.token_ms, begin_ms)
            if job.state not in _ELSEWHERE or (due is not None and due.at > now):
                found.append(due)
        return Demand([due for due in found if due is not None], backlog, expected, None in found)

    def quiet(self, now: float) -> Demand:
        """Return the demand as it would be with nothing in hand."""
        return Demand(expected=self._targets.expected_s(now))

    @property
    def waits(self) -> int:
        """Units of interactive work that is here, also of what is not prepared yet."""
        return max(self._table.waiting[INTERACTIVE], self._table.room.taken[INTERACTIVE])

    def _backlog_s(self) -> float:
        """Predict how long the passes take that interactive work needs."""
        budget = self._scheduler.budget
        full, rest = divmod(self.waits, budget)
        seconds = full * self._cost.predict_pass(budget) if full else 0.0
        return seconds + (self._cost.predict_pass(rest) if rest else 0.0)


def _due(targets: Targets | None, enqueued_ms: float, token_ms: float, begin_ms: float) -> Due | None:
    """Return what of a job is due next, on the monotonic clock, whose 0 was the server's `begin_ms`; None: it has no target. Its
    last token came at `token_ms`, if one has."""
    if targets is None:
        return None
    firsts = (enqueued_ms, targets.ttft_ms, False)
    nexts = (token_ms, targets.inter_token_ms, True)
    both = ((enqueued_ms, targets.latency_ms, False), nexts if token_ms else firsts)
    dues = [Due((since + target - begin_ms) / 1000, target / 1000, token) for since, target, token in both if target]
    return min(dues, default=None)
