"""Chunks of growing texts, on their way to whoever reads them: not one write a token and text, yet first words at once."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from fmplex_broker.errors import FmplexError
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_broker.wire.streaming import Chunk, Delta, encode_chunk
from fmplex_worker.host.active_job import ActiveJob

log = logging.getLogger(__name__)
_GATHER_S = 0.015


class ChunkSender:
    """Sends what has gathered, of all jobs at once. What cannot be sent is lost: the reader sees a gap, and the reply at the end
    has all of it."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._gathered: dict[str, tuple[ActiveJob, Delta]] = {}
        self._numbers: dict[str, int] = {}  # of the last chunk of each job
        self._some = asyncio.Event()
        self._first = asyncio.Event()
        self._outage = Outage(log, "sending texts as they grow")

    def add(self, job: ActiveJob, news: Delta) -> None:
        """Gather what has been added to a job's text; the first of it is sent at once."""
        before = self._gathered.get(job.key)
        self._gathered[job.key] = job, news if before is None else before[1] + news
        if job.key not in self._numbers:
            self._first.set()
        self._some.set()

    def end(self, job: ActiveJob) -> None:
        """Forget a job whose reply is on its way: that has all of its text."""
        self._gathered.pop(job.key, None)
        self._numbers.pop(job.key, None)

    async def run(self) -> None:
        """Send what `add` gathers, for ever."""
        sent = 0.0
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                # Where passes take longer than that, all that one brings goes at once.
                async with asyncio.timeout(max(0.0, sent + _GATHER_S - time.monotonic())):
                    await self._first.wait()
            sent = time.monotonic()
            self._some.clear()
            self._first.clear()
            batch, self._gathered = self._gathered, {}
            await self._send(list(batch.values()))

    async def _send(self, batch: list[tuple[ActiveJob, Delta]]) -> None:
        chunks = []
        for job, news in batch:
            number = self._numbers[job.key] = self._numbers.get(job.key, 0) + 1
            chunks.append((job.claimed, encode_chunk(Chunk(job.claimed.attempts, number, news))))
        try:
            await self._consumer.send_chunks(chunks)
            self._outage.over()
        except FmplexError as e:
            self._outage.say(e)
