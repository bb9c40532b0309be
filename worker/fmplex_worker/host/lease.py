"""Staying alive in the eyes of the fleet, and taking over from those who did not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.clock import ServerClock

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Somebody else has taken over: nothing held here is ours any more. Begin a new life under a new id."""


class Lease:
    """Beats three times a lease; reaps after each beat once it has been steady for a whole lease."""

    def __init__(
        self, consumer: Consumer, clock: ServerClock, lease_ms: int, max_attempts: int, changed: Callable[[int], None]
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._lease_ms = lease_ms
        self._max_attempts = max_attempts
        self._changed = changed
        self._steady_since = time.monotonic()
        self._last = time.monotonic()
        self._outage = Outage(log, "heartbeat")

    async def run(self) -> None:
        """Beat and reap, for ever. Raises `LeaseLost`."""
        while True:
            began = time.monotonic()
            try:
                await self._beat()
                self._outage.over()
                await self._reap()
                due = self._last + self._lease_ms / 3000
            except BrokerUnavailable as e:
                self._outage.say(e)
                due = began + self._lease_ms / 3000  # at once, if it took its time until it failed
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _beat(self) -> None:
        beat = await self._consumer.beat()
        now = time.monotonic()
        if not beat.alive:
            raise LeaseLost(self._consumer.worker)
        if (now - self._last) * 1000 > self._lease_ms:
            # We were away so long that others may only look dead because the broker was: start judging afresh.
            self._steady_since = now
        self._last = now
        self._clock.set(beat.now_ms)
        self._changed(beat.changes)

    async def _reap(self) -> None:
        steady_ms = int((time.monotonic() - self._steady_since) * 1000)
        if steady_ms < self._lease_ms:
            return
        while time.monotonic() - self._last < self._lease_ms / 3000:  # else the next beat is due
            got = await self._consumer.reap(steady_ms, max_attempts=self._max_attempts)
            if got.state != "ok":
                return
            log.warning(
                "took over from worker %s: %d jobs given back, %d dead letters",
                got.victim,
                got.given_back,
                got.dead_letters,
            )
