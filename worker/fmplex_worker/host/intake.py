"""The way in: claim what there is room for, and let it into preparation."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from fmplex_broker.errors import Cancelled
from fmplex_broker.specs.versions import is_stale, stale_error
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.claim_pacing import ClaimPacer
from fmplex_worker.host.claiming import Claimer, Wanted
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.preparation import Preparation
from fmplex_worker.host.version_loads import VersionLoads
from fmplex_worker.host.version_waiting import VersionWaiting

_MOST_WAITING = 128  # jobs that may wait for their versions before only resident vFMs are claimed from


class Intake:
    """Keeps as many jobs at hand as the next passes take. `run` it once."""

    def __init__(
        self,
        claimer: Claimer,
        pacer: ClaimPacer,
        table: JobTable,
        loads: VersionLoads,
        dispatcher: Dispatcher,
        preparation: Preparation,
        hosted: str,
    ) -> None:
        """`hosted`: the fingerprint of what this worker hosts."""
        self._claimer = claimer
        self._pacer = pacer
        self._table = table
        self._residents = loads.residents
        self._dispatcher = dispatcher
        self._preparation = preparation
        self._hosted = hosted
        self._versions = VersionWaiting(loads, dispatcher, preparation, preparation.tasks, self.ring)
        self._rung = False

    async def run(self) -> None:
        """Claim jobs and let them in, for ever. Raises `LeaseLost`."""
        async with self._preparation.tasks:
            while True:
                await self._claim()

    async def _claim(self) -> None:
        """Claim once, when it is time for it and there is room."""
        most = await self._pacer.claim_due()
        wanted = self._wanted(most)
        if not wanted.room:
            return await self._pacer.room_freed()
        self._rung = False  # before claiming: what rings from now on is not lost
        self._pacer.note_claim()
        claimed, wait_s = await self._claimer.claim(wanted)
        if claimed:
            jobs = [self._table.add(job, time.monotonic()) for job in claimed]
            await self._versions.accept([job for job in jobs if not self._unwanted(job)])
            self._pacer.note_arrival(len(claimed))
        elif wait_s:
            await self._idle(wanted, wait_s)

    def ring(self) -> None:
        """Note that there may be work, or room for more."""
        self._rung = True
        self._table.freed.set()

    def _wanted(self, most: int) -> Wanted:
        """Return what to claim now. What waits for its version must not take all there is, nor what is in use the device: until
        then only resident vFMs are asked for. Flows whose jobs would only wait here, and keep others out, are avoided."""
        room = {cls: min(n, most) for cls, n in self._table.claimable(time.monotonic()).items()}
        strangers = self._table.count(JobState.AWAITING_VERSION) < _MOST_WAITING and not self._residents.crowded
        return Wanted(
            room, strangers, self._dispatcher.crowded | self._preparation.crowded | self._table.room.overflowing
        )

    async def _idle(self, asked: Wanted, most_s: float) -> None:
        """Wait until there may be work, or there is room for a class, or for vFMs, that were not asked for: their backlog does
        not ring again."""
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                while not self._rung:
                    now = self._wanted(1)
                    if not (now.room.keys() <= asked.room.keys() and asked.avoid <= now.avoid):
                        break
                    if asked.strangers < now.strangers:
                        break
                    await self._pacer.room_freed()

    def _unwanted(self, job: ActiveJob) -> bool:
        """Answer a job that is not to run: it was cancelled, or waited for weights that nobody hosts any more."""
        if self._table.unwanted(job):
            self._dispatcher.answer(job, Cancelled("the job was cancelled before it ran"))
        elif is_stale(job.version, self._hosted):
            self._dispatcher.answer(job, stale_error(job.flow.vfm, job.version, self._hosted))
        return job.ended
