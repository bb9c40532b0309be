"""The training task of a worker: it takes tuning jobs, as many as it has room for, and does them beside its passes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.specs.tuning import TunePlace
from fmplex_broker.streams.outages import Outage
from fmplex_broker.streams.tune_owner import HeldTune
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.tune_course import TuneCourse
from fmplex_worker.host.tune_desk import MOST, TuneDesk
from fmplex_worker.protocol import EngineInfo

log = logging.getLogger(__name__)
_CLAIM_S = 1.0


def place_of(info: EngineInfo) -> TunePlace:
    """Return where an engine trains: what is begun here goes on at such a place only."""
    cuda = info.device.startswith("cuda")
    return TunePlace(
        hosted=info.fingerprint.digest, device="cuda" if cuda else "cpu", threads=1 if cuda else info.threads
    )


class TrainingTask:
    """Claims tuning jobs for one life of a worker. `table`: of what else it has in hand."""

    def __init__(self, desk: TuneDesk, table: JobTable, max_attempts: int) -> None:
        self._desk = desk
        self._table = table
        self._max_attempts = max_attempts
        self._place = place_of(desk.engine.info)
        self._courses: dict[str, asyncio.Task[None]] = {}
        self._outage = Outage(log, "taking tuning jobs")

    async def run(self) -> None:
        """Take jobs and do them, until `stop`; then give them back."""
        async with asyncio.TaskGroup() as group:
            while not self._desk.stop.is_set():
                if len(self._courses) < MOST and (held := await self._claimed()) is not None:
                    log.info("tuning job %s is taken", held.id)
                    self._courses[held.id] = task = group.create_task(TuneCourse(held, self._desk).run())
                    task.add_done_callback(partial(self._forget, held.id))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CLAIM_S):
                        await self._desk.stop.wait()

    def stop(self) -> None:
        """Take no more jobs, and give back those in hand, with what was learnt; `run` ends once that is done."""
        self._desk.stop.set()

    def _forget(self, job: str, course: asyncio.Task[None]) -> None:
        del self._courses[job]

    async def _claimed(self) -> HeldTune | None:
        try:
            held = await self._desk.owner.claim(
                self._place, idle=not len(self._table), max_attempts=self._max_attempts, known=self._courses
            )
            self._outage.over()
        except BrokerUnavailable as e:
            self._outage.say(e)
            return None
        return held
