"""The way in: claim, decode, validate and tokenise off the loop, price, and hand to the scheduler."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Executor
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable, DeadlineExceeded, FmplexError, VfmClosed
from fmplex_broker.messages import Request, decode_request
from fmplex_broker.streams.consumer import Claimed, Consumer
from fmplex_worker.clock import ServerClock
from fmplex_worker.engines.protocol import Engine, Prepared
from fmplex_worker.lease import LeaseLost
from fmplex_worker.library import Library
from fmplex_worker.outbox import Outbox
from fmplex_worker.scheduling import Item, Scheduler
from fmplex_worker.window import Held, Window

log = logging.getLogger(__name__)
_IDLE_S = 2.0  # ceiling of the sleep between looks when nothing rings
_BACKOFF_S = 0.1


class Intake:
    """Keeps the window filled. Owns claiming: after any failure of a claim or a release it recovers before it goes on."""

    def __init__(
        self,
        consumer: Consumer,
        window: Window,
        scheduler: Scheduler,
        engine: Engine,
        library: Library,
        outbox: Outbox,
        clock: ServerClock,
        thread: Executor,
    ) -> None:
        self._consumer = consumer
        self._window = window
        self._scheduler = scheduler
        self._engine = engine
        self._library = library
        self._outbox = outbox
        self._clock = clock
        self._thread = thread
        self._rung = False

    async def run(self) -> None:
        """Raises `LeaseLost`."""
        while True:
            room = self._window.room()
            if not room:
                self._window.freed.clear()
                await self._window.freed.wait()
                continue
            self._rung = False  # before claiming: what rings from now on is not lost
            jobs, more = await self._claim(room)
            if jobs:
                await self._accept(jobs)
            elif not more:
                await self._idle(set(room))

    async def _claim(self, room: dict[str, int]) -> tuple[list[Claimed], bool]:
        try:
            claim = await self._consumer.claim(room)
            # The lease may only have run out (a long pause): a beat revives it, unless somebody has taken over.
            if claim.state == "lost" and not (await self._consumer.beat()).alive:
                raise LeaseLost(self._consumer.worker)
        except BrokerUnavailable as e:
            log.warning("claim: %s", e)
            await self.recover()
            return [], True
        for flow, rest in claim.rest.items():
            self._scheduler.expect(flow, rest)  # a flow whose stream has more is not empty, it is only waiting for us
        return claim.jobs, claim.more or claim.state != "ok"

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

    async def _idle(self, asked: set[str]) -> None:
        """Until there may be work, or there is room for a class that was not asked for: its backlog rings no more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                while not self._rung and set(self._window.room()) <= asked:
                    self._window.freed.clear()
                    await self._window.freed.wait()

    async def _accept(self, jobs: list[Claimed]) -> None:
        held = [self._window.add(job) for job in jobs]
        if not all(self._library.has(job.digest) or self._library.missing(job.digest) for job in jobs):
            await self._library.catch_up(self._consumer.worker)
        good: list[tuple[Held, Request]] = []
        for h in held:
            try:
                good.append((h, self._decode(h.job)))
            except FmplexError as e:
                self._outbox.answer(h, e)
        if not good:
            return
        batch = [(h.job.digest, request) for h, request in good]
        prepared = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.prepare, batch)
        for (h, _), p in zip(good, prepared, strict=True):
            self._enter(h, p)

    def _decode(self, job: Claimed) -> Request:
        if not job.payload or job.deadline_ms <= self._clock.now_ms():
            raise DeadlineExceeded("the job waited longer than its deadline; it was not run")
        if not self._library.has(job.digest):
            raise self._library.missing(job.digest) or VfmClosed(
                f"version {job.digest} of {job.flow.vfm!r} was replaced before this job ran; send it again"
            )
        return decode_request(job.payload)

    def _enter(self, held: Held, prepared: Prepared | FmplexError) -> None:
        if held.done:  # cancelled while it was being prepared
            return
        if isinstance(prepared, FmplexError):
            self._outbox.answer(held, prepared)
            return
        self._window.ready(held, prepared)
        self._scheduler.add(
            Item(
                key=held.key,
                flow=held.job.flow,
                phase="encode",
                units=prepared.units,
                segment=prepared.adapter or None,
                head=prepared.head or None,
                alone=held.job.attempts > 1,  # it may have killed the worker it ran on
                deadline=held.job.deadline_ms / 1000,
            )
        )

    async def give_back(self) -> int:
        """Release every job that has not started. Forgets them first, so that a lost reply cannot make them run twice here."""
        idle = [h for h in self._window if not h.running and not h.done]
        for h in idle:
            self._scheduler.remove(h.key)
            self._window.drop(h)
        try:
            return await self._consumer.release([h.job for h in idle])
        except BrokerUnavailable:
            await self.recover()
            return len(idle)
