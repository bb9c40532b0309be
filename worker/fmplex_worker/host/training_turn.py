"""Training between the passes: when the device is lent, to whom, and for how long (docs/scheduling.md)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.demand import DemandReader
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.training_books import TrainingBooks, UnitRun
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.protocol import Outcome
from fmplex_worker.scheduling import Leftover, Loan, Plan, Slack, UnitQueue

_MARK_S = 0.05  # what is worth waiting until the broker knows whose unit runs
_AGAIN_S = 0.5  # when it did not answer
_LOOK_S = 0.05  # slack comes back with time, and nothing rings then
_LONGEST_S = 0.25  # of a loan: what has run is in nobody's figures before its end


class Unfit(NamedTuple):
    """A training no unit of which fits now, though nothing waits. Seconds: its unit `takes`; the device can be `lent` as passes
    are by now, and for `most` if they took no time at all."""

    job: TrainingJob
    takes: float
    lent: float
    most: float


class TrainingTurn:
    """Lends the device thread to units of the trainings here, while no pass is under way. Event loop only, but for `_units`."""

    def __init__(
        self,
        slack: Slack,
        leftover: Leftover,
        demand: DemandReader,
        device: DeviceThread,
        table: JobTable,
        blame: Blame,
        books: TrainingBooks,
    ) -> None:
        self._slack = slack
        self._leftover = leftover
        self._demand = demand
        self._device = device
        self._table = table
        self._blame = blame
        self._books = books
        self._queue = UnitQueue()
        self._jobs: dict[str, TrainingJob] = {}
        self._aside: dict[str, TrainingJob] = {}  # that run only while nothing is in hand
        self._lending = asyncio.Lock()
        self._running: TrainingJob | None = None
        self._until = -math.inf
        self._marked_after = 0.0
        self._stopping = False

    # ---- trainings ----

    async def add(self, job: TrainingJob) -> None:
        """Take a training in. Raises what its first unit cannot be made for."""
        await self._device.lend(_prime(job))
        async with self._halted(None):
            self._jobs[job.id] = job
            self._queue.add(job.id, job.weight)
            self._aside[job.id] = job
            self._tell(job)
        self._table.arrived.set()

    async def remove(self, job: TrainingJob) -> None:
        """Let go of a training, at once but for the unit that runs; no-op if it has ended."""
        async with self._halted(job):
            if job.id in self._jobs:
                self._forget(job)

    def unfit(self) -> Unfit | None:
        """Return the training whose turn it is, if its next unit takes longer than the device can be lent when nothing waits:
        then it only ever runs by chance."""
        if self._running is not None or (key := self._queue.front) is None:
            return None
        now = time.monotonic()
        takes, demand = self._queue.predict(now), self._demand.quiet(now)
        loan = self._slack.loan(now, demand)
        if not loan.strict or takes <= loan.seconds:
            return None
        return Unfit(self._jobs[key], takes, loan.seconds, self._slack.spend.most * demand.expected)

    def stop(self) -> None:
        """Lend the device no more."""
        self._stopping = True
        self._until = -math.inf

    @asynccontextmanager
    async def _halted(self, job: TrainingJob | None) -> AsyncIterator[None]:
        """Keep the device from being lent; a loan that is under way is ended, if it is to `job`."""
        if job is not None and job is self._running:
            self._until = -math.inf
        async with self._lending:
            yield

    def _forget(self, job: TrainingJob) -> None:
        del self._jobs[job.id]
        self._aside.pop(job.id, None)
        self._queue.remove(job.id)
        self._books.stats.jobs = len(self._jobs)

    def _tell(self, job: TrainingJob) -> None:
        """Tell a training's owner what has come of its units; forget it with the last one."""
        self._books.stats.jobs = len(self._jobs)
        if job.unit is None:
            job.ended = job.error is None
            self._forget(job)
        if job.unit is None or job.cut is not None:
            job.news.set()

    # ---- between passes ----

    @property
    def wanted(self) -> bool:
        """Whether units wait."""
        return bool(self._jobs) and not self._stopping

    def may(self, in_s: float = 0.0) -> bool:
        """Tell whether a unit may run next, in so many seconds, once the passes under way have ended."""
        if not self.wanted:
            return False
        now = time.monotonic() + in_s
        if self._next(now) is None or now < self._marked_after:
            return False
        if not self._leftover.is_turn(offline_waits=self._offline_waits):
            return False
        return self._fits(self._loan_at(now), now)

    def _fits(self, loan: Loan, now: float) -> bool:
        least = self._queue.predict(now) if loan.strict else 0.0
        return loan.seconds > 0 and loan.seconds >= least

    def _next(self, now: float) -> TrainingJob | None:
        """Choose the training whose turn it is. Of those that run only by themselves none is while there are jobs in hand."""
        for job in list(self._aside.values()):
            if job.unit is not None and not (job.alone and len(self._table)):
                del self._aside[job.id]
                self._queue.offer(job.id, job.unit.kind, job.unit.cost, now)
        while (key := self._queue.pick(now)) is not None and self._jobs[key].alone and len(self._table):
            self._queue.withdraw(key)
            self._aside[key] = self._jobs[key]
        return None if key is None else self._jobs[key]

    @property
    def lets_ride(self) -> bool:
        """Whether offline jobs may be in interactive passes: not where they have had their part of what these leave."""
        return not self.wanted or not self._leftover.is_turn(offline_waits=True)

    @property
    def _offline_waits(self) -> bool:
        return self._table.waiting[OFFLINE] > 0

    def _loan_at(self, now: float) -> Loan:
        loan = self._slack.loan(now, self._demand.read(now), owed=self._leftover.owed)
        stats, slack = self._books.stats, self._slack
        stats.slack_s, stats.spend, stats.spend_tokens = loan.seconds, slack.spend.now(now), slack.spend_tokens.now(now)
        return loan

    def _note_quiet(self, now: float) -> None:
        if not self._demand.waits:
            self._books.caught_up(now)

    def _at_once(self, loan: Loan) -> float:
        """Return the seconds of a loan that may be used before the next look at offline jobs: short ones where some wait."""
        return min(loan.seconds, self._slack.unit_s if self._offline_waits else _LONGEST_S)

    async def run(self) -> None:
        """Lend the device until the slack is used up, or somebody comes who has less. Raises `LeaseLost`."""
        async with self._lending:
            job = self._next(time.monotonic()) if self.wanted else None
            if job is None:
                return
            try:
                if await self._mark(job):
                    await self._lend(job)
            finally:
                self._blame.tuned()

    async def _lend(self, job: TrainingJob) -> None:
        now = time.monotonic()
        self._note_quiet(now)
        loan = self._loan_at(now)
        if self._stopping or (job.alone and len(self._table)) or not self._fits(loan, now):
            return
        self._running, self._until = job, now + self._at_once(loan)
        try:
            runs = await self._follow(job, self._device.lend(self._units(job)))
        finally:  # also if this life ends here: the thread is the next one's
            self._running = None
            self._until = -math.inf
        seconds = self._books.ran(job.vfm, job.weight, runs)
        job.seconds += seconds
        self._leftover.note_units(seconds, offline_waits=self._offline_waits, owed=loan.owed)
        self._tell(job)

    async def _mark(self, job: TrainingJob) -> bool:
        """Let the broker know whose units run, unless that takes long while others wait: passes do not need its answer."""
        telling = asyncio.ensure_future(self._blame.tune(job.id))
        telling.add_done_callback(_swallow)
        end = time.monotonic() + _MARK_S
        while not telling.done() and not self._stopping and (time.monotonic() < end or not len(self._table)):
            await asyncio.wait({telling}, timeout=_MARK_S)
        if telling.done() and telling.result():
            return True
        self._marked_after = time.monotonic() + _AGAIN_S
        return False

    async def _follow(self, job: TrainingJob, work: asyncio.Future[list[UnitRun]]) -> list[UnitRun]:
        """Wait for a loan to end, and cut it short for whoever comes."""
        halted = False
        while not work.done():
            self._table.arrived.clear()
            arrival = asyncio.ensure_future(self._table.arrived.wait())
            try:
                either: set[asyncio.Future[Any]] = {work, arrival}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrival.cancel()
            now = time.monotonic()
            if not work.done() and now < self._until:
                until = -math.inf if job.alone and len(self._table) else now + self._at_once(self._loan_at(now))
                halted = halted or until < self._until
                self._until = min(self._until, until)
        self._books.stats.halts += halted
        return work.result()

    def _units(self, job: TrainingJob) -> Iterator[UnitRun]:
        """Run units of a training, one a step: the first one, which fits, and more while there is time and it is its turn. Device
        thread."""
        first = True
        while (unit := job.unit) is not None:
            now = time.monotonic()
            if now + (0.0 if first else self._queue.predict(now)) > self._until:
                return
            try:
                unit.run()
                job.advance()
            except Exception as e:  # its own misfortune: if the device is broken, the next pass finds out
                job.unit, job.error = None, e
            ended = time.monotonic()
            predicted, first = self._queue.charge(ended - now, ended), False
            if job.unit is not None:
                self._queue.offer(job.id, job.unit.kind, job.unit.cost, ended)
            yield UnitRun(unit, ended - now, predicted, ended)
            if self._queue.pick(ended) != job.id or job.cut is not None:
                return

    # ---- passes ----

    def landed(self, plan: Plan, outcome: Outcome) -> None:
        """Note a pass that has ended."""
        if plan.cls == INTERACTIVE:
            self._slack.note_pass(outcome.seconds, plan.seconds, time.monotonic())
        if not self.wanted:
            self._leftover.rest()
            return
        offline_s = outcome.seconds * plan.units_by_class[OFFLINE] / plan.units
        if offline_s < outcome.seconds:
            self._leftover.note_interactive(outcome.seconds - offline_s, offline_waits=self._offline_waits)
        if offline_s:
            self._leftover.note_offline(offline_s)

    async def rest(self) -> None:
        """Wait until there may be something to run."""
        self._blame.clear_tuning()
        self._note_quiet(time.monotonic())
        self._table.arrived.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S if self.wanted else None):
                await self._table.arrived.wait()


def _prime(job: TrainingJob) -> Iterator[None]:
    """Make the first unit of a training. Device thread."""
    if job.unit is None:  # else it was here before, and that one has not run
        job.advance()
    yield


def _swallow(telling: asyncio.Future[bool]) -> None:
    """Take the outcome of a word that nobody waits for any more; a lost lease is found out by the next beat."""
    if not telling.cancelled():
        telling.exception()
