"""Telling the broker what runs now or is being prepared: if this worker dies, that is what may have killed it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.lease import LeaseLost

log = logging.getLogger(__name__)
_BACKOFF_S = 0.1


class Blame:
    """Keeps the broker's record of suspect jobs right, with as few calls as that takes: a claim marks what it brings, so what is
    prepared together as it comes needs no call of its own."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._outage = Outage(log, "marking what runs")
        self._flights: list[Flight] = []
        self._preparing: dict[str, Claimed] = {}  # that no claim has marked
        self._claimed: dict[str, Claimed] = {}  # being prepared, and marked by their claims
        self._marked: dict[str, Claimed] = {}  # the jobs that the broker has heard of, but those
        self._tuning = self._told_tuning = ""  # whose unit runs, and what the broker has heard of that
        self._opening = ""  # which tuning job is being opened, beside all else
        self._telling_tuning = False
        self._clearing: asyncio.Task[None] | None = None
        self._marking = asyncio.Lock()
        self._pardoned = False

    async def mark(self, flights: Iterable[Flight]) -> None:
        """Wait until the broker knows whom to blame for a death during these passes, and nobody else. It is called only if that
        has changed: a text that grows it has heard of already. Raises `LeaseLost`."""
        self._flights = list(flights)
        if (self._told_tuning or self._telling_tuning) and not self._is_news():
            self.clear_tuning()  # texts that go on need not wait for that
        else:
            await self._mark()

    def landed(self, flight: Flight) -> None:
        """Note that a pass has ended: its jobs are not to blame for what comes now."""
        self._flights = [other for other in self._flights if other is not flight]

    async def tune(self, job: str) -> bool:
        """Wait until the broker knows that units of this tuning job run next, for which it alone is to blame. False if it cannot
        be told now, or `tuned` was called meanwhile. Raises `LeaseLost`."""
        self._tuning = job
        async with self._marking:
            if self._told_tuning != job and not self._pardoned:
                self._telling_tuning = True
                try:  # the jobs stay as they are: for the passes to come nothing has changed
                    if not await self._consumer.mark(self._marked.values(), preparing=bool(self._claimed), tuning=job):
                        raise LeaseLost(self._consumer.worker)
                    self._told_tuning = job
                except BrokerUnavailable:
                    self._told_tuning = "?"  # it may have heard
                finally:
                    self._telling_tuning = False
        return self._tuning == self._told_tuning == job and not self._pardoned

    def tuned(self) -> None:
        """Note that no unit runs any more: from the next word to the broker on the job is not to blame."""
        self._tuning = self._opening

    async def open(self, job: str) -> None:
        """Let the broker know that this tuning job is being opened: while no unit of another one runs, it alone is to blame.
        Raises `LeaseLost`."""
        self._opening = job
        await self.tune(job)

    def opened(self) -> None:
        """Note that none is being opened any more."""
        if self._tuning == self._opening:
            self._tuning = ""
        self._opening = ""

    def clear_tuning(self) -> None:
        """Tell the broker so, beside what happens next."""
        between = self._tuning == self._opening != self._told_tuning
        if self._told_tuning and between and (self._clearing is None or self._clearing.done()):
            self._clearing = asyncio.create_task(self._clear())

    async def _clear(self) -> None:
        with suppress(LeaseLost):  # the next beat finds out
            await self._mark()

    async def prepare(self, jobs: Iterable[ActiveJob]) -> None:
        """Wait until the broker knows that these jobs are being prepared. Raises `LeaseLost`."""
        self._preparing.update((job.key, job.claimed) for job in jobs)
        await self._mark()

    def note_claimed(self, jobs: Iterable[ActiveJob]) -> None:
        """Note that these jobs, which their claim has marked, are being prepared."""
        self._claimed.update((job.key, job.claimed) for job in jobs)

    def prepared(self, jobs: Iterable[ActiveJob]) -> None:
        """Note that these jobs have been prepared."""
        for job in jobs:
            self._preparing.pop(job.key, None)
            self._claimed.pop(job.key, None)

    @property
    def claimed(self) -> list[Claimed]:
        """Jobs that their claims have marked and that are being prepared still: the next claim has to mark them again."""
        return list(self._claimed.values())

    async def pardon(self) -> None:
        """Tell the broker to blame nobody from now on: the worker leaves, and if it is killed before it has left, that is because
        it took long. Raises `BrokerUnavailable`."""
        async with self._marking:
            self._pardoned = True
            await self._consumer.mark([], preparing=False)
            self._tuning = self._told_tuning = ""

    async def _mark(self) -> None:
        async with self._marking:  # else an older record might come after a newer one
            while not self._pardoned:
                if self._told_tuning == self._tuning and not self._is_news():
                    return
                blamed, tuning = self._blamed(), self._tuning
                try:
                    if not await self._consumer.mark(blamed.values(), preparing=bool(self._claimed), tuning=tuning):
                        raise LeaseLost(self._consumer.worker)
                    self._marked, self._told_tuning = blamed, tuning
                    self._outage.over()
                except BrokerUnavailable as e:
                    self._outage.say(e)
                    await asyncio.sleep(_BACKOFF_S)

    def _blamed(self) -> dict[str, Claimed]:
        """Return the jobs to blame for a death now, but those that claims have marked."""
        return self._preparing | {job.key: job.claimed for flight in self._flights for job in flight.blamed}

    def _is_news(self) -> bool:
        """Tell whether the broker would blame others than it should."""
        blamed = self._blamed()
        spared = {job.key for flight in self._flights for job in flight.jobs} - blamed.keys()
        return not blamed.keys() <= self._marked.keys() or bool(spared & self._marked.keys())
