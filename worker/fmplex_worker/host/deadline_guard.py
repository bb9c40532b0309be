"""Jobs without hope are answered, not run: they would be late even in the next pass, and make those behind them late too."""

from __future__ import annotations

import time

from fmplex_broker.errors import DeadlineExceeded
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.protocol import Engine
from fmplex_worker.scheduling import CostModel, Scheduler

_TRUST, _FRESH_S = 4.0, 1.0  # predictions count up to so many times the last pass, if that was just now


class DeadlineGuard:
    """Finds and answers jobs that cannot be done by their deadlines."""

    def __init__(
        self,
        table: JobTable,
        dispatcher: Dispatcher,
        scheduler: Scheduler,
        engine: Engine,
        cost: CostModel,
        passes: PassProgress,
        clock: ServerClock,
    ) -> None:
        self._table = table
        self._dispatcher = dispatcher
        self._scheduler = scheduler
        self._engine = engine
        self._cost = cost
        self._passes = passes
        self._clock = clock

    def answer_hopeless(self, busy_s: float) -> None:
        """Answer the jobs that would be late even in the next pass, which can begin in `busy_s` seconds."""
        for job in self._table.expired(self._clock.now_ms(), 1000 * self._ahead_s(busy_s)):
            why = "the text was not finished by its deadline; ask for less, or wait longer"
            if not job.begun:
                why = "the job waited too long to be done by its deadline; it was not run"
            self._dispatcher.answer(job, DeadlineExceeded(why))

    def _ahead_s(self, busy_s: float) -> float:
        """Predict how long it takes from now until the next pass has ended, in seconds."""
        # A prediction far off must not keep everything from running: then nothing would ever put it right.
        if not self._passes.ended_within(_FRESH_S, time.monotonic()):
            return 0.0
        waiting = self._table.waiting[INTERACTIVE]
        budget = min(self._scheduler.budget, self._engine.capacity.units)
        # Without a backlog the next pass holds what waits, and may be shortened to half a budget for a deadline.
        units = budget if waiting > budget else min(waiting, budget // 2)
        takes_s = busy_s + (self._cost.predict_pass(units) if units else 0.0)
        return min(takes_s, _TRUST * self._passes.last_s)
