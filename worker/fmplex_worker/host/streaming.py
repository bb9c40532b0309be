"""Growing texts on their way to whoever reads them: not one write a token and row, yet first words at once."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.streaming import Chunk, Delta, encode_chunk
from fmplex_worker.host.jobs import ActiveJob

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

    def add(self, held: ActiveJob, news: Delta) -> None:
        before = self._gathered.get(held.key)
        self._gathered[held.key] = held, news if before is None else before[1] + news
        if held.key not in self._numbers:
            self._first.set()
        self._some.set()

    def end(self, held: ActiveJob) -> None:
        """Its reply is on its way, and has all of it."""
        self._gathered.pop(held.key, None)
        self._numbers.pop(held.key, None)

    async def run(self) -> None:
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
        for held, news in batch:
            number = self._numbers[held.key] = self._numbers.get(held.key, 0) + 1
            chunks.append((held.job, encode_chunk(Chunk(held.job.attempts, number, news))))
        try:
            await self._consumer.send_chunks(chunks)
        except BrokerUnavailable as e:
            log.warning("tell: %s; %d readers wait for the reply", e, len(chunks))
