"""Jobs whose version is not on the device wait beside the others, in order, while it is brought there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fmplex_broker.errors import FmplexError
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.preparation import Preparation
from fmplex_worker.host.version_loads import VersionLoads

log = logging.getLogger(__name__)


class VersionWaiting:
    """Lets jobs into preparation as soon as their version is resident."""

    def __init__(
        self,
        loads: VersionLoads,
        dispatcher: Dispatcher,
        preparation: Preparation,
        tasks: asyncio.TaskGroup,
        on_room: Callable[[], None],
    ) -> None:
        """`tasks`: where versions are loaded, one task each; `on_room()` is called whenever fewer jobs wait."""
        self._loads = loads
        self._residents = loads.residents
        self._dispatcher = dispatcher
        self._preparation = preparation
        self._tasks = tasks
        self._on_room = on_room
        self._waiting: dict[str, list[ActiveJob]] = {}  # version -> jobs that wait for it

    async def accept(self, jobs: list[ActiveJob]) -> None:
        """Prepare the jobs whose version is here, and load the versions of the others. Returns when the first are through."""
        here = [job for job in jobs if self._residents.has(job.digest) and job.digest not in self._waiting]
        self._residents.count(hits=len(here), misses=len(jobs) - len(here))
        for job in here:
            self._dispatcher.prepare(job)
        for job in jobs:
            if job.state is JobState.CLAIMED:
                self._await(job)
        await self._preparation.admit(here, marked=True)

    def _await(self, job: ActiveJob) -> None:
        self._dispatcher.await_version(job)
        if job.digest in self._waiting:
            self._waiting[job.digest].append(job)
        else:
            self._waiting[job.digest] = [job]
            self._tasks.create_task(self._bring(job.digest, job.version, job.flow.vfm))

    async def _bring(self, digest: str, version: str, vfm: str) -> None:
        """Load a version and let in the jobs that wait for it, those too that come meanwhile."""
        error: FmplexError | None = None
        try:
            await self._loads.load(vfm, version)
        except FmplexError as e:
            log.error("vFM %s: %s", vfm, e)
            error = e
        while waiting := [job for job in self._waiting[digest] if not job.ended]:
            self._waiting[digest] = []
            for job in waiting:
                if error is not None:
                    self._dispatcher.answer(job, error)
                else:
                    self._dispatcher.prepare(job)
                    job.load_ms = (time.monotonic() - job.since) * 1000
            if error is None:
                await self._preparation.admit(waiting, marked=False)
        del self._waiting[digest]
        if error is None:
            self._residents.unpin(digest)
        self._on_room()
