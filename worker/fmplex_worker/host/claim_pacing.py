"""When to claim. While a pass runs and there is already work for the next one, nothing is gained by fetching every job as it
comes: the interpreter that the claims take is the device's."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fmplex_broker.streams.claims import CLAIM_ROOM
from fmplex_worker.host.jobs import JobTable

_A_PASS, _A_FULL_PASS = 8, 2  # claims while a pass runs; and if what waits already fills the next one
_LAST = 8  # jobs of the last claim: few, so that they are ready in time; who has just come is among the first
_WAY_S = 0.004  # from a claim until what it brought can be in a pass, until that is known
_SMOOTH = 0.05
_LEAST_S = 0.002


class ClaimPacer:
    """Spaces the claims of one intake. The last one before a pass is made comes just in time for it, so that nobody who could
    be in it waits for another."""

    def __init__(self, window: JobTable) -> None:
        self._window = window
        self._sent = 0.0
        self._way_s = _WAY_S

    def sent(self) -> None:
        """A claim is on its way."""
        self._sent = time.monotonic()

    def arrived(self, jobs: int) -> None:
        """What it brought can run."""
        if 0 < jobs <= _LAST:
            self._way_s += (time.monotonic() - self._sent - self._way_s) * _SMOOTH

    async def turn(self) -> int:
        """Until it is time for a claim; of how many jobs at most."""
        window, now = self._window, time.monotonic()
        full = window.waiting_units >= window.pass_units
        rest_s = self._sent + window.run_s / (_A_FULL_PASS if full else _A_PASS) - now
        last_s = window.due - 1.5 * self._way_s - now
        if rest_s <= 0:
            return CLAIM_ROOM
        is_last = 0 < last_s < rest_s
        with suppress(TimeoutError):
            async with asyncio.timeout(last_s if is_last else rest_s):
                while window.running and window.waiting_units:
                    window.freed.clear()
                    await window.freed.wait()
                return CLAIM_ROOM
        return _LAST if is_last else CLAIM_ROOM

    async def room(self) -> None:
        """The window may be full: until a job has ended, or a part of the running pass."""
        window = self._window
        window.freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(window.run_s / _A_PASS, _LEAST_S) if window.running else None):
                await window.freed.wait()
