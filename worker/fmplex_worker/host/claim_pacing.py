"""When to claim. While a pass runs and there is already work for the next one, nothing is gained by fetching every job as it
comes: the interpreter that the claims take is the device's."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fmplex_broker.streams.claims import CLAIM_ROOM
from fmplex_broker.wire.messages import INTERACTIVE
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.passes import PassProgress

_A_PASS, _A_FULL_PASS = 8, 2  # claims while a pass runs; and if interactive work that waits already fills the next one
_LAST = 8  # jobs of the last claim: few, so that they are ready in time; who has just come is among the first
_WAY_S = 0.004  # from a claim until what it brought can be in a pass, until that is known
_SMOOTH = 0.05
_LEAST_S = 0.002


class ClaimPacer:
    """Spaces the claims of one intake. The last one before a pass is made comes just in time for it, so that nobody who could
    be in it waits for another."""

    def __init__(self, table: JobTable, passes: PassProgress) -> None:
        self._table = table
        self._passes = passes
        self._sent = 0.0
        self._way_s = _WAY_S

    def note_claim(self) -> None:
        """Note that a claim is on its way."""
        self._sent = time.monotonic()

    def note_arrival(self, jobs: int) -> None:
        """Note that the jobs which the claim brought can run: how long that took tells when the next last claim is due."""
        if 0 < jobs <= _LAST:
            self._way_s += (time.monotonic() - self._sent - self._way_s) * _SMOOTH

    async def claim_due(self) -> int:
        """Wait until it is time for a claim; return how many jobs it may bring at most."""
        table, now = self._table, time.monotonic()
        full = table.waiting[INTERACTIVE] >= table.room.pass_units  # offline work makes way for whoever comes
        rest_s = self._sent + self._passes.expected_s / (_A_FULL_PASS if full else _A_PASS) - now
        last_s = self._passes.due - 1.5 * self._way_s - now
        if rest_s <= 0:
            return CLAIM_ROOM
        is_last = 0 < last_s < rest_s
        with suppress(TimeoutError):
            async with asyncio.timeout(last_s if is_last else rest_s):
                while self._busy and table.waiting_units:
                    table.freed.clear()
                    await table.freed.wait()
                return CLAIM_ROOM
        return _LAST if is_last else CLAIM_ROOM

    async def room_freed(self) -> None:
        """Wait until there may be claim room again: a job has ended, or a part of the running pass."""
        table = self._table
        table.freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._passes.expected_s / _A_PASS, _LEAST_S) if self._busy else None):
                await table.freed.wait()

    @property
    def _busy(self) -> bool:
        return self._table.count(JobState.RUNNING) > 0
