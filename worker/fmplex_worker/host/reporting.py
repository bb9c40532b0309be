"""What a worker tells of itself, once a second."""

from __future__ import annotations

import asyncio
import logging

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.connection import Client
from fmplex_broker.streams.fleet import publish
from fmplex_broker.streams.outages import Outage
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.tracing import Recorder
from fmplex_worker.residency.residents import Residents
from fmplex_worker.scheduling import Scheduler

log = logging.getLogger(__name__)
_EVERY_S = 1.0


class Reporter:
    """Publishes the worker's figures, and the passes that it has recorded while somebody traces them."""

    def __init__(
        self,
        redis: Client,
        meter: Meter,
        recorder: Recorder,
        scheduler: Scheduler,
        table: JobTable,
        dispatcher: Dispatcher,
        residents: Residents,
    ) -> None:
        self._redis = redis
        self._meter = meter
        self._recorder = recorder
        self._scheduler = scheduler
        self._table = table
        self._dispatcher = dispatcher
        self._residents = residents

    async def run(self) -> None:
        """Report, for ever. Whatever keeps it from that is no reason to stop serving."""
        outage = Outage(log, "reporting")
        while True:
            if not self._table.count(JobState.RUNNING) or self._meter.memory_is_old:
                await asyncio.to_thread(self._meter.memory)
            stats = self._meter.snapshot(
                held=len(self._table),
                residency=self._residents.snapshot(),
                scheduler=self._scheduler,
                memory=self._dispatcher.memory,
            )
            try:
                self._recorder.listen(await publish(self._redis, stats, self._recorder.drain()))
                outage.over()
            except FmplexError as e:
                outage.say(e)
            await self._residents.trim()
            await asyncio.sleep(_EVERY_S)
