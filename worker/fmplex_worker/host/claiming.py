"""Claims, and what is done when one fails: after any failure of a claim or a release the worker recovers before it goes on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import NamedTuple

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.claims import Claim, Claimed, Order
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.lease import LeaseLost
from fmplex_worker.scheduling import Scheduler, TargetBook

log = logging.getLogger(__name__)
_BACKOFF_S = 0.1
_IDLE_S = 2.0  # ceiling of the sleep between claims when nothing rings


class Wanted(NamedTuple):
    """What a claim asks for: how many jobs by class, whether also of vFMs that are not resident here, and of which flows none."""

    room: dict[str, int]
    strangers: bool
    avoid: set[Flow]


class Claimer:
    """Claims jobs for one worker, and keeps the scheduler and the targets up to date with what claims tell of the vFMs."""

    def __init__(
        self,
        consumer: Consumer,
        table: JobTable,
        scheduler: Scheduler,
        targets: TargetBook,
        steal_ms: int,
        order: Order,
        blame: Blame,
    ) -> None:
        """`steal_ms`: a vFM that is resident on another worker is left to it until its oldest job has waited that long; `order`:
        of claims, `fair` or by `arrival`."""
        self._consumer = consumer
        self._table = table
        self._scheduler = scheduler
        self._targets = targets
        self._steal_ms = steal_ms
        self._order = order
        self._blame = blame
        self._outage = Outage(log, "claiming")

    async def claim(self, wanted: Wanted) -> tuple[list[Claimed], float]:
        """Claim once. Return jobs and, if there are none, how many seconds to sleep before the next claim: 0 if there are more.

        Raises `LeaseLost`.
        """
        try:
            claim = await self._consumer.claim(
                wanted.room,
                order=self._order,
                steal_ms=self._steal_ms,
                strangers=wanted.strangers,
                avoid=wanted.avoid,
                preparing=self._blame.claimed,
            )
            # The lease may only have run out (a long pause): a beat revives it, unless somebody has taken over.
            if claim.state == "lost" and not (await self._consumer.beat()).alive:
                raise LeaseLost(self._consumer.worker)
        except BrokerUnavailable as e:
            self._outage.say(e)
            await self.recover()
            return [], _BACKOFF_S
        self._outage.over()
        self._learn(claim)
        more = claim.more or claim.state != "ok"
        return claim.jobs, 0.0 if more else (claim.wait_ms / 1000 or _IDLE_S)

    def _learn(self, claim: Claim) -> None:
        for flow, rest in claim.rest.items():
            self._scheduler.expect(flow, rest)  # a flow whose stream has more is not empty, it is only waiting for us
        for vfm, terms in claim.terms.items():
            self._scheduler.set_weight(vfm, terms.weight)
        now = time.monotonic()
        for vfm in {job.flow.vfm for job in claim.jobs if job.flow.cls == INTERACTIVE}:
            self._targets.record(vfm, claim.terms[vfm].targets, now)

    async def recover(self) -> None:
        """Give back what is pending here unknown to us, as soon as the broker answers. Raises `LeaseLost`."""
        while True:
            try:
                if not await self._consumer.recover([job.claimed for job in self._table]):
                    raise LeaseLost(self._consumer.worker)
                return
            except BrokerUnavailable:
                await asyncio.sleep(_BACKOFF_S)

    async def release(self, jobs: Iterable[Claimed]) -> int:
        """Give jobs back that have been forgotten here; return how many went back.

        They are forgotten first, so that a lost reply cannot make them run twice here.
        """
        jobs = list(jobs)
        try:
            return await self._consumer.release(jobs)
        except BrokerUnavailable:
            await self.recover()
            return len(jobs)
