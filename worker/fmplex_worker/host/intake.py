"""The way in: claim, decode, validate and tokenise off the loop, price, and hand to the scheduler."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace

from fmplex_broker.errors import BrokerUnavailable, Cancelled, DeadlineExceeded, FmplexError
from fmplex_broker.streams.claims import Claimed, Order
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Request, decode_request
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.protocol import Engine, Prepared
from fmplex_worker.residency.residents import Residents
from fmplex_worker.scheduling import PassBudget, Scheduler

log = logging.getLogger(__name__)
_PARKED = 128  # jobs that may wait for their versions before only resident vFMs are claimed from
_IDLE_S = 2.0  # ceiling of the sleep between looks when nothing rings
_BACKOFF_S = 0.1


class Intake:
    """Keeps the window filled. Owns claiming: after any failure of a claim or a release it recovers before it goes on."""

    def __init__(
        self,
        consumer: Consumer,
        window: JobTable,
        scheduler: Scheduler,
        budget: PassBudget,
        engine: Engine,
        residents: Residents,
        seating: Dispatcher,
        outbox: Outbox,
        clock: ServerClock,
        thread: Executor,
        steal_ms: int,
        order: Order,
    ) -> None:
        self._consumer = consumer
        self._window = window
        self._scheduler = scheduler
        self._budget = budget
        self._engine = engine
        self._residents = residents
        self._seating = seating
        self._steal_ms = steal_ms
        self._order = order
        self._parked: dict[str, list[ActiveJob]] = {}  # version -> jobs that wait for it
        self._arriving: list[ActiveJob] = []  # for the intake thread
        self._preparing = asyncio.Lock()
        self._group = asyncio.TaskGroup()
        self._outbox = outbox
        self._clock = clock
        self._thread = thread
        self._rung = False
        self._pace = ClaimPacer(window)

    async def run(self) -> None:
        """Raises `LeaseLost`."""
        async with self._group:
            await self._fill()

    async def _fill(self) -> None:
        while True:
            most = await self._pace.turn()
            room = {cls: min(n, most) for cls, n in self._window.room().items()}
            if not room:
                await self._pace.room()
                continue
            self._rung = False  # before claiming: what rings from now on is not lost
            strangers, avoid = self._strangers_welcome(), self._avoided()
            jobs, more, wait_s = await self._claim(room, strangers, avoid)
            if jobs:
                await self._accept(jobs)
                self._pace.arrived(len(jobs))
            elif not more:
                await self._idle(set(room), strangers, avoid, wait_s)

    def _strangers_welcome(self) -> bool:
        """What waits for its version must not fill the window, nor what is in use the device: until then only vFMs that are
        resident here are asked for."""
        return self._window.parked < _PARKED and not self._residents.crowded

    def _avoided(self) -> set[Flow]:
        """Flows whose jobs would only wait here, and keep others out."""
        return self._seating.crowded | self._window.overflowing

    async def _claim(
        self, room: dict[str, int], strangers: bool, avoid: set[Flow]
    ) -> tuple[list[Claimed], bool, float]:
        """Jobs, whether there are more, and how long to sleep at most if there are none."""
        self._pace.sent()
        try:
            claim = await self._consumer.claim(
                room, order=self._order, steal_ms=self._steal_ms, strangers=strangers, avoid=avoid
            )
            # The lease may only have run out (a long pause): a beat revives it, unless somebody has taken over.
            if claim.state == "lost" and not (await self._consumer.beat()).alive:
                raise LeaseLost(self._consumer.worker)
        except BrokerUnavailable as e:
            log.warning("claim: %s", e)
            await self.recover()
            return [], True, 0.0
        for flow, rest in claim.rest.items():
            self._scheduler.expect(flow, rest)  # a flow whose stream has more is not empty, it is only waiting for us
        for vfm, terms in claim.terms.items():
            self._scheduler.set_weight(vfm, terms.weight)
        now = time.monotonic()
        for vfm in {job.flow.vfm for job in claim.jobs if job.flow.cls == INTERACTIVE}:
            self._budget.saw(vfm, claim.terms[vfm].pass_ms / 1000, now)
        wait_s = claim.wait_ms / 1000 if claim.wait_ms else _IDLE_S
        return claim.jobs, claim.more or claim.state != "ok", wait_s

    async def recover(self) -> None:
        """Until the broker answers: give back what is pending here unknown to us. Raises `LeaseLost`."""
        while True:
            try:
                if not await self._consumer.recover([held.job for held in self._window]):
                    raise LeaseLost(self._consumer.worker)
                return
            except BrokerUnavailable:
                await asyncio.sleep(_BACKOFF_S)

    def ring(self) -> None:
        """There may be work."""
        self._rung = True
        self._window.freed.set()

    async def _idle(self, asked: set[str], strangers: bool, avoided: set[Flow], most_s: float) -> None:
        """Until there may be work, or there is room for a class, or for vFMs, that were not asked for: their backlog rings no
        more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while not self._rung and set(self._window.room()) <= asked and avoided <= self._avoided():
                    if strangers < self._strangers_welcome():
                        break
                    await self._pace.room()

    async def _accept(self, jobs: list[Claimed]) -> None:
        held = [h for job in jobs if not self._cancelled(h := self._window.add(job))]
        here = [h for h in held if self._residents.has(h.job.digest) and h.job.digest not in self._parked]
        self._residents.count(hits=len(here), misses=len(held) - len(here))
        for h in here:
            self._pin(h)
        for h in held:
            if not h.pinned:
                self._park(h)
        await self._admit(here)

    def _cancelled(self, held: ActiveJob) -> bool:
        if unwanted := self._window.unwanted(held):
            self._outbox.answer(held, Cancelled("the job was cancelled before it ran"))
        return unwanted

    def _pin(self, held: ActiveJob) -> None:
        self._residents.pin(held.job.digest)
        held.pinned = True  # until it has a reply, or is not ours any more

    def _park(self, held: ActiveJob) -> None:
        """Its version is not here: it waits, in order, beside the window."""
        self._window.park(held)
        digest = held.job.digest
        if digest in self._parked:
            self._parked[digest].append(held)
            return
        self._parked[digest] = [held]
        self._group.create_task(self._bring(digest, held.job.flow.vfm))

    async def _bring(self, digest: str, vfm: str) -> None:
        """Load a version and let in the jobs that wait for it, those too that come meanwhile."""
        error: FmplexError | None = None
        try:
            await self._residents.load(digest, vfm)
        except FmplexError as e:
            log.error("vFM %s: %s", vfm, e)
            error = e
        while waiting := [h for h in self._parked[digest] if not h.done]:
            self._parked[digest] = []
            for h in waiting:
                if error is not None:
                    self._outbox.answer(h, error)
                else:
                    self._pin(h)
                    self._window.unpark(h)
                    h.load_ms = (time.monotonic() - h.since) * 1000
            if error is None:
                await self._admit(waiting)
        del self._parked[digest]
        if error is None:
            self._residents.unpin(digest)
        self.ring()  # there is room for strangers again

    async def _admit(self, held: list[ActiveJob]) -> None:
        """Decode, validate and tokenise; every version is here and pinned. What comes while the thread is at work goes together
        when it is free."""
        self._arriving += held
        async with self._preparing:
            arrived, self._arriving = self._arriving, []
            await self._prepare(arrived)

    async def _prepare(self, held: list[ActiveJob]) -> None:
        good: list[tuple[ActiveJob, Request]] = []
        for h in held:
            try:
                good.append((h, self._decode(h.job)))
            except FmplexError as e:
                self._outbox.answer(h, e)
        if not good:
            return
        batch = [(h.job.digest, request) for h, request in good]
        prepared = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.prepare, batch)
        for (h, request), p in zip(good, prepared, strict=True):
            h.streams = request.params.get("stream") is True
            self._enter(h, p)

    def _decode(self, job: Claimed) -> Request:
        if not job.payload or job.deadline_ms <= self._clock.now_ms():
            raise DeadlineExceeded("the job waited too long to be done by its deadline; it was not run")
        return replace(decode_request(job.payload), vfm=job.flow.vfm)

    def _enter(self, held: ActiveJob, prepared: Prepared | FmplexError) -> None:
        if held.done:  # cancelled while it was being prepared
            return
        if isinstance(prepared, FmplexError):
            self._outbox.answer(held, prepared)
            return
        self._window.ready(held, prepared)
        self._seating.enter(held)

    async def give_back(self) -> int:
        """Release every job that has not started. Forgets them first, so that a lost reply cannot make them run twice here."""
        idle = [h for h in self._window if not h.running and not h.resident and not h.done]
        for h in idle:
            self._seating.end(h)
            self._window.drop(h)
        try:
            return await self._consumer.release([h.job for h in idle])
        except BrokerUnavailable:
            await self.recover()
            return len(idle)
