"""What becomes of jobs when their pass has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.stats import Meter
from fmplex_worker.protocol import Outcome, Progress
from fmplex_worker.scheduling import CostModel, Flow


class Landing:
    """Books a pass on its jobs and sends each of them on: to its reply, or to its next pass."""

    def __init__(
        self,
        table: JobTable,
        dispatcher: Dispatcher,
        outbox: Outbox,
        cost: CostModel,
        clock: ServerClock,
        meter: Meter,
    ) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._outbox = outbox
        self._cost = cost
        self._clock = clock
        self._meter = meter

    def land(self, flight: Flight, outcome: Outcome, charges: Sequence[float]) -> None:
        """Take in the outcome of a pass, of whose items each was charged so many seconds."""
        unit_s = self._cost.price(1)
        began_ms = self._clock.at_ms(outcome.ended - outcome.seconds)
        units: dict[Flow, int] = {}
        jobs: dict[str, ActiveJob] = {}
        for job, item, charge in zip(flight.jobs, flight.plan.items, charges, strict=True):
            units[job.flow] = units.get(job.flow, 0) + item.units
            job.charged += charge / unit_s
            jobs[job.key] = job
        for job in jobs.values():
            self._table.land(job, began_ms - job.enqueued_ms)
            job.run_ms += outcome.seconds * 1000
        for job, result in zip(jobs.values(), outcome.results, strict=True):
            self._go_on(job, result)
        self._meter.ran(units, outcome.seconds)

    def _go_on(self, job: ActiveJob, result: Any) -> None:
        if not isinstance(result, Progress):
            self._dispatcher.answer(job, result)
        elif job.cancelled is not None:
            self._dispatcher.answer(job, job.cancelled)
        else:
            if result.news is not None:
                self._outbox.stream(job, result.news)
            self._dispatcher.go_on(job)
