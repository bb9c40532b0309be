"""The device task: plan a pass, run it on the device thread, charge it. The next pass is ready before the current one ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from fmplex_broker.errors import BrokerUnavailable, Cancelled, DeadlineExceeded, FmplexError
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.quarantine import suspect
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.protocol import Engine, Outcome, Progress, Work
from fmplex_worker.scheduling import CostModel, Plan, Room, Scheduler

log = logging.getLogger(__name__)
_ROWS = 4096  # jobs a pass
_BACKOFF_S = 0.1
_LAUNCH_S = 0.004  # what it takes to launch a pass, until that is known
_TRUST, _FRESH_S = 4.0, 1.0  # jobs are given up by predictions up to so many times the last pass, if that was just now
_SMOOTH = 0.05


@dataclass(slots=True)
class Flight:
    """A pass on its way through the device thread. It is expected to end at `ends`, and the one behind it has to be made when it
    is `due` (monotonic seconds)."""

    plan: Plan
    jobs: list[ActiveJob]  # of the items of the plan, one each
    outcome: asyncio.Future[Outcome]
    ends: float = 0.0
    due: float = 0.0

    @property
    def blamed(self) -> list[ActiveJob]:
        """Who will have killed the worker if it dies of this pass: what may have killed one before, if that is in it."""
        return [held for held in self.jobs if suspect(held)] or self.jobs

    @property
    def grows(self) -> bool:
        """Whether texts go on growing after it: the pass behind it is for their next tokens too, so it cannot be made before."""
        return any(held.prepared is not None and held.prepared.memory for held in self.jobs)


class PassLoop:
    """Runs passes back to back. Two may be in flight: one running, one full one ready behind it, so that the device never
    waits for the event loop. The one behind is made late, so that who comes meanwhile is in it and waits for one pass, not for
    two; and only if it is full: otherwise it would gather less."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        cost: CostModel,
        window: JobTable,
        seating: Dispatcher,
        outbox: Outbox,
        consumer: Consumer,
        clock: ServerClock,
        meter: Meter,
        thread: Executor,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._cost = cost
        self._window = window
        self._seating = seating
        self._outbox = outbox
        self._consumer = consumer
        self._clock = clock
        self._meter = meter
        self._flights: deque[Flight] = deque()
        self._stopping = False
        self._thread = thread
        self._recorder = recorder
        self._launch_s = _LAUNCH_S
        self._marked: set[str] = set()  # jobs of which the broker has heard that they run

    def stop(self) -> None:
        """End once nothing is left to run."""
        self._stopping = True
        self._window.arrived.set()

    async def run(self) -> None:
        """Until `stop`, and then until nothing is left to run. Raises `LeaseLost`."""
        while True:
            self._expire()
            if self._flights and not self._worth_planning():
                await self._land_or_due()
                continue
            plan = self._scheduler.plan(
                self._clock.now_ms() / 1000 + self._busy_s(), Room(self._engine.capacity.units, _ROWS)
            )
            if plan is not None:
                await self._launch(plan)
            elif self._flights:
                await self._land()
            elif self._stopping:
                return
            else:
                self._window.arrived.clear()
                await self._window.arrived.wait()

    def _worth_planning(self) -> bool:
        full = self._window.waiting_units >= self._scheduler.budget
        first = self._flights[0]
        return full and len(self._flights) < 2 and time.monotonic() >= first.due and not first.grows

    def _busy_s(self) -> float:
        """Until the next pass can begin, by what is expected of those in flight."""
        return max(0.0, self._flights[-1].ends - time.monotonic()) if self._flights else 0.0

    def _expire(self) -> None:
        """Answer what has no hope: it would be late even in the next pass. To run it would make those behind it late too."""
        waiting = self._window.waiting[INTERACTIVE]
        budget = min(self._scheduler.budget, self._engine.capacity.units)
        # Without a backlog the next pass holds what waits, and may be shortened to half a budget for a deadline.
        units = budget if waiting > budget else min(waiting, budget // 2)
        takes_s = self._busy_s() + (self._cost.predict_pass(units) if units else 0.0)
        # A prediction far off must not keep everything from running: then nothing would ever put it right.
        takes_s = min(takes_s, _TRUST * self._window.pass_s) if self._window.ran_within(_FRESH_S) else 0.0
        for held in self._window.expired(self._clock.now_ms(), 1000 * takes_s):
            if held.resident:
                self._drop(
                    held, DeadlineExceeded("the text was not finished by its deadline; ask for less, or wait longer")
                )
            else:
                self._drop(held, DeadlineExceeded("the job waited too long to be done by its deadline; it was not run"))

    def cancel(self, key: str) -> None:
        """The caller does not want it any more: a job that is in no pass goes now, another one when its pass has ended, and
        one that is not here if it comes."""
        held = self._window.get(key)
        if held is None:
            self._window.forgo(key)
        elif held.done:
            return
        elif held.running:
            held.dropped = Cancelled("the job was cancelled while it ran")
        else:
            self._drop(held, Cancelled("the job was cancelled before it ran"))

    def _drop(self, held: ActiveJob, why: FmplexError) -> None:
        self._seating.end(held)
        self._outbox.answer(held, why)

    async def _launch(self, plan: Plan) -> None:
        begun = time.monotonic()
        self._recorder.launched(plan)
        started = [self._window.start(item.key) for item in plan.items]
        flight = Flight(plan, [held for held, _ in started], asyncio.get_running_loop().create_future())
        work: dict[str, Work] = {}
        for held, piece in started:
            assert held.prepared is not None
            before = work[held.key].tokens if held.key in work else 0
            work[held.key] = Work(held.prepared, before + piece.tokens)
        # Hidden behind the running pass, if there is one.
        await self._mark(flight)
        flight.outcome = asyncio.get_running_loop().run_in_executor(self._thread, self._engine.step, [*work.values()])
        self._flights.append(flight)
        self._launch_s += (time.monotonic() - begun - self._launch_s) * _SMOOTH
        if len(self._flights) == 1:
            self._begun()
        else:
            flight.ends = self._flights[0].ends + plan.seconds

    def _begun(self) -> None:
        """The first flight has begun to run."""
        flight = self._flights[0]
        plan = flight.plan
        flight.ends = time.monotonic() + plan.seconds
        # Not all launches are alike, and the end is usually off.
        flight.due = flight.ends - 1.5 * self._launch_s - 0.75 * self._cost.error * plan.seconds
        self._window.begun(plan.cls, plan.units, plan.seconds, flight.due)

    async def _mark(self, flight: Flight) -> None:
        """Until the broker has heard whom to blame for a death; nobody else is. Of a text that grows it has heard already."""
        flying = [*self._flights, flight]
        blamed = {held.key: held.job for f in flying for held in f.blamed}
        spared = {held.key for f in flying for held in f.jobs} - blamed.keys()
        while not blamed.keys() <= self._marked or spared & self._marked:
            try:
                if not await self._consumer.mark(blamed.values()):
                    raise LeaseLost(self._consumer.worker)
                self._marked = set(blamed)
            except BrokerUnavailable as e:
                log.warning("mark: %s; waiting", e)
                await asyncio.sleep(_BACKOFF_S)

    async def _land_or_due(self) -> None:
        """Until the running pass ends, or it is time to make the one behind it and there is enough for it."""
        flight = self._flights[0]
        if len(self._flights) < 2:
            self._window.arrived.clear()
            early_s = flight.due - time.monotonic()
            # Before that time nothing that arrives changes anything.
            arrival = asyncio.ensure_future(self._window.arrived.wait() if early_s <= 0 else asyncio.sleep(early_s))
            either: set[asyncio.Future[Any]] = {flight.outcome, arrival}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            arrival.cancel()
            if not flight.outcome.done():
                return
        await self._land()

    async def _land(self) -> None:
        flight = self._flights[0]
        # An engine answers for every job; when it raises, the device itself is broken. The process ends with it, and the jobs
        # are taken over by workers whose device is not.
        outcome = await flight.outcome
        self._flights.popleft()
        self._window.ended(outcome.seconds)
        if self._flights:
            self._begun()
        charges = self._scheduler.charge(flight.plan, outcome.seconds)
        self._recorder.landed(flight.plan, [held.job.enqueued_ms for held in flight.jobs], outcome, charges)
        unit_s = self._cost.price(1)
        units: dict[str, int] = {}
        for held, item, charge in zip(flight.jobs, flight.plan.items, charges, strict=True):
            units[held.job.flow.vfm] = units.get(held.job.flow.vfm, 0) + item.units
            held.spent += charge / unit_s
            self._window.landed(held)
        for held, result in zip({held.key: held for held in flight.jobs}.values(), outcome.results, strict=True):
            if held.wait_ms is None:
                held.wait_ms = self._clock.at_ms(outcome.ended - outcome.seconds) - held.job.enqueued_ms
            held.run_ms += outcome.seconds * 1000
            self._go_on(held, result)
        self._meter.ran(units, outcome.seconds)

    def _go_on(self, held: ActiveJob, result: Any) -> None:
        """What becomes of a job after its pass."""
        if held.done:
            self._seating.end(held)
        elif not isinstance(result, Progress):
            self._end(held, result)
        elif held.dropped is not None:
            self._end(held, held.dropped)
        else:
            self._window.stay(held)
            if result.news is not None:
                self._outbox.tell(held, result.news)
            if not held.running:
                self._seating.go_on(held)

    def _end(self, held: ActiveJob, result: Any) -> None:
        self._seating.end(held)
        self._outbox.answer(held, result)
