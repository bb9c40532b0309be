"""The device task: plan a pass, run it on the device thread, charge it. The next pass is ready before the current one ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

from fmplex_worker.host.blame import Blame
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.landing import Landing
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.host.planning import PassPlanner
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.protocol import Work
from fmplex_worker.scheduling import Plan

_LAUNCH_S = 0.004  # what it takes to launch a pass, until that is known
_SMOOTH = 0.05


class PassLoop:
    """Runs passes back to back. Two may be in flight: one running, one full one ready behind it, so that the device never
    waits for the event loop. The one behind is made late, so that who comes meanwhile is in it and waits for one pass, not for
    two; and only if it is full: otherwise it would gather less."""

    def __init__(
        self,
        planner: PassPlanner,
        device: DeviceThread,
        table: JobTable,
        passes: PassProgress,
        blame: Blame,
        landing: Landing,
        turn: TrainingTurn | None = None,
    ) -> None:
        """`turn`: of training, where this worker takes tuning jobs."""
        self._planner = planner
        self._device = device
        self._table = table
        self._passes = passes
        self._blame = blame
        self._landing = landing
        self._turn = turn
        self._flights: deque[Flight] = deque()
        self._stopping = False
        self._launch_s = _LAUNCH_S

    async def run(self) -> None:
        """Run passes until `stop`, and then until nothing is left to run. Raises `LeaseLost`."""
        while True:
            self._planner.answer_hopeless(self._busy_s())
            if self._flights and not self._worth_planning():
                await self._land_or_due()
            elif self._turn is not None and not self._flights and self._turn.may():
                await self._turn.run()
            elif (plan := self._plan()) is not None:
                await self._launch(plan)
            elif self._flights:
                await self._land()
            elif self._stopping:
                return
            elif self._turn is not None:
                await self._turn.rest()
            else:
                self._table.arrived.clear()
                await self._table.arrived.wait()

    def _plan(self) -> Plan | None:
        return self._planner.plan(self._busy_s(), riders=self._turn is None or self._turn.lets_ride)

    def stop(self) -> None:
        """End once nothing is left to run."""
        self._stopping = True
        if self._turn is not None:
            self._turn.stop()
        self._table.arrived.set()

    async def _launch(self, plan: Plan) -> None:
        launched = time.monotonic()
        started = [self._table.start(item.key) for item in plan.items]
        work: dict[str, Work] = {}
        for job, piece in started:
            before = work[job.key].tokens if job.key in work else 0
            work[job.key] = Work(job.prepared, before + piece.tokens)
        flight = Flight(plan, [job for job, _ in started], asyncio.get_running_loop().create_future())
        # Hidden behind the running pass, if there is one.
        await self._blame.mark([*self._flights, flight])
        flight.outcome = self._device.step([*work.values()])
        self._flights.append(flight)
        self._launch_s += (time.monotonic() - launched - self._launch_s) * _SMOOTH
        if len(self._flights) == 1:
            self._begun()
        else:
            flight.ends = self._flights[0].ends + plan.seconds

    def _begun(self) -> None:
        """Note that the first flight has begun to run."""
        flight, now = self._flights[0], time.monotonic()
        plan = flight.plan
        flight.ends = now + plan.seconds
        # Not all launches are alike, and the end is usually off.
        flight.due = flight.ends - 1.5 * self._launch_s - 0.75 * self._planner.error * plan.seconds
        self._passes.begin(plan.units_by_class, plan.seconds, flight.due, now)

    async def _land(self) -> None:
        flight = self._flights[0]
        # An engine answers for every job; when it raises, the device itself is broken. The process ends with it, and the jobs
        # are taken over by workers whose device is not.
        outcome = await flight.outcome
        self._flights.popleft()
        self._blame.landed(flight)
        self._passes.end(outcome.seconds, time.monotonic())
        if self._flights:
            self._begun()
        if self._turn is not None:
            self._turn.landed(flight.plan, outcome)
        self._landing.land(flight, outcome, self._planner.charge(flight, outcome))

    async def _land_or_due(self) -> None:
        """Wait until the running pass ends, or it is time to make the one behind it and there is enough for it."""
        flight = self._flights[0]
        if len(self._flights) < 2:
            self._table.arrived.clear()
            early_s = flight.due - time.monotonic()
            # Before that time nothing that arrives changes anything.
            arrival = asyncio.ensure_future(self._table.arrived.wait() if early_s <= 0 else asyncio.sleep(early_s))
            either: set[asyncio.Future[Any]] = {flight.outcome, arrival}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            arrival.cancel()
            if not flight.outcome.done():
                return
        await self._land()

    def _worth_planning(self) -> bool:
        first = self._flights[0]
        full = self._planner.full(self._table.waiting)
        worth = full and len(self._flights) < 2 and time.monotonic() >= first.due and not first.grows
        return worth and (self._turn is None or not self._turn.may(self._busy_s()))  # a unit runs between two passes

    def _busy_s(self) -> float:
        """Return the seconds until the next pass can begin, by what is expected of those in flight."""
        return max(0.0, self._flights[-1].ends - time.monotonic()) if self._flights else 0.0
