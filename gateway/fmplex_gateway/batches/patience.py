"""Waiting for a broker or a store that is away: as long as it takes, unless the batch is not ours any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from fmplex_broker.errors import BrokerUnavailable, Unavailable
from fmplex_broker.streams.batch_list import LEASE_MS, Lost
from fmplex_broker.streams.outages import Outage

log = logging.getLogger(__name__)
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.2, LEASE_MS / 1000

T = TypeVar("T")


class GivenBack(Exception):
    """This gateway is being stopped: another one goes on with the batch."""


class Patience:
    """Whether a batch is still ours to work on, and how what it needs is waited for."""

    def __init__(self, batch: str) -> None:
        self._batch = batch
        self._outage = Outage(log, f"batch {batch}")
        self._over = asyncio.Event()
        self._sure_until = time.monotonic() + LEASE_MS / 1000
        self.lost = self.closing = False

    @property
    def is_sure(self) -> bool:
        """True while the lease cannot have run out: a process that has stood still does not know yet that it did."""
        return not self.lost and time.monotonic() < self._sure_until

    def renewed(self) -> None:
        """Note that the lease begins anew."""
        self._sure_until = time.monotonic() + LEASE_MS / 1000

    def end(self, *, lost: bool = False) -> None:
        """Say that the batch is not ours any more, or that this gateway is being stopped."""
        self.lost = self.lost or lost
        self.closing = self.closing or not lost
        self._over.set()

    def check(self) -> None:
        """Raise `Lost` once somebody else has the batch."""
        if self.lost:
            raise Lost(self._batch)

    async def until_done(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something, again and again while broker or store are away; return its result. Raises what else it raises, `Lost`,
        and `GivenBack` where it would have to wait and may not."""
        pause_s, failed = _LEAST_PAUSE_S, False
        while True:
            self.check()
            try:
                result = await work()
                if failed:
                    self._outage.over()
                return result
            except Unavailable as e:
                failed = True
                if type(e) is not BrokerUnavailable:  # that is said once, by who watches the broker, not by every batch
                    self._outage.say(e)
            if self.closing:
                raise GivenBack
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._over.wait()
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
