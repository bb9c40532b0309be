"""From what was claimed to what the engine takes: decoded, validated and tokenised, off the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import replace

from fmplex_broker.errors import DeadlineExceeded, FmplexError
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import Request, decode_request
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.protocol import Engine


class Preparation:
    """Prepares jobs whose version is here. What comes while the thread is at work goes together when it is free."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher, clock: ServerClock, thread: Executor) -> None:
        self._engine = engine
        self._dispatcher = dispatcher
        self._clock = clock
        self._thread = thread
        self._arriving: list[ActiveJob] = []
        self._busy = asyncio.Lock()

    async def admit(self, jobs: list[ActiveJob]) -> None:
        """Prepare jobs and queue them; answer those that are not acceptable. Returns when these are through."""
        self._arriving += jobs
        async with self._busy:
            arrived, self._arriving = self._arriving, []
            await self._prepare(arrived)

    async def _prepare(self, jobs: list[ActiveJob]) -> None:
        good: list[tuple[ActiveJob, Request]] = []
        for job in jobs:
            try:
                good.append((job, self._decode(job.claimed)))
            except FmplexError as e:
                self._dispatcher.answer(job, e)
        if not good:
            return
        batch = [(job.digest, request) for job, request in good]
        prepared = await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.prepare, batch)
        for (job, request), made in zip(good, prepared, strict=True):
            job.streams = request.params.get("stream") is True
            if isinstance(made, FmplexError):
                self._dispatcher.answer(job, made)
            elif not job.ended:  # else it was cancelled while it was being prepared
                self._dispatcher.enter(job, made)

    def _decode(self, claimed: Claimed) -> Request:
        if not claimed.payload or claimed.deadline_ms <= self._clock.now_ms():
            raise DeadlineExceeded("the job waited too long to be done by its deadline; it was not run")
        return replace(decode_request(claimed.payload), vfm=claimed.flow.vfm)
