"""Telling the broker which jobs run now: if this worker dies, they are the ones that may have killed it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.lease import LeaseLost

log = logging.getLogger(__name__)
_BACKOFF_S = 0.1


class Blame:
    """Keeps the broker's record of running jobs right, with as few calls as that takes."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._outage = Outage(log, "marking what runs")
        self._marked: set[str] = set()  # keys of the jobs that the broker has heard of

    async def mark(self, flights: Iterable[Flight]) -> None:
        """Wait until the broker knows whom to blame for a death during these passes, and nobody else. It is called only if that
        has changed: a text that grows it has heard of already. Raises `LeaseLost`."""
        flights = list(flights)
        blamed = {job.key: job.claimed for flight in flights for job in flight.blamed}
        spared = {job.key for flight in flights for job in flight.jobs} - blamed.keys()
        while not blamed.keys() <= self._marked or spared & self._marked:
            try:
                if not await self._consumer.mark(blamed.values()):
                    raise LeaseLost(self._consumer.worker)
                self._marked = set(blamed)
                self._outage.over()
            except BrokerUnavailable as e:
                self._outage.say(e)
                await asyncio.sleep(_BACKOFF_S)
