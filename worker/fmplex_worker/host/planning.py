"""Between the pass loop and the scheduler: what goes into the next pass, and what the last one is charged."""

from __future__ import annotations

from collections.abc import Mapping

from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.deadline_guard import DeadlineGuard
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.protocol import Engine, Outcome
from fmplex_worker.scheduling import CLASSES, INTERACTIVE, CostModel, Plan, Room, Scheduler

_ROWS = 4096  # items a pass


class PassPlanner:
    """Plans passes, records them for whoever traces, and charges them."""

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        cost: CostModel,
        guard: DeadlineGuard,
        clock: ServerClock,
        recorder: Recorder,
    ) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._cost = cost
        self._guard = guard
        self._clock = clock
        self._recorder = recorder

    def answer_hopeless(self, busy_s: float) -> None:
        """Answer the jobs that would be late even in a pass that begins in `busy_s` seconds."""
        self._guard.answer_hopeless(busy_s)

    def plan(self, busy_s: float, *, riders: bool) -> Plan | None:
        """Plan a pass that begins in `busy_s` seconds; None if there is nothing to run. `riders`: whether offline jobs may be in
        interactive passes."""
        room = Room(self._engine.capacity.units, _ROWS, riders)
        plan = self._scheduler.plan(self._clock.now_ms() / 1000 + busy_s, room)
        if plan is not None:
            self._recorder.launched(plan)
        return plan

    def charge(self, flight: Flight, outcome: Outcome) -> list[float]:
        """Charge a pass that has run; return what each of its items is charged, in seconds."""
        charges = self._scheduler.charge(flight.plan, outcome.seconds)
        self._recorder.landed(flight.plan, [job.enqueued_ms for job in flight.jobs], outcome, charges)
        return charges

    def full(self, waiting: Mapping[str, int]) -> bool:
        """Tell whether so many units that wait, by class, fill the next pass: one of the first class that has any."""
        cls = next((cls for cls in CLASSES if waiting[cls]), INTERACTIVE)
        return waiting[cls] >= self._scheduler.full_units(cls)

    @property
    def error(self) -> float:
        """How far predictions of passes have been off lately, as a share of them."""
        return self._cost.error
