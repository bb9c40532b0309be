"""The way out: replies are encoded and settled in batches, off the step path."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.outages import Outage
from fmplex_broker.wire.messages import Reply, encode_reply
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.streaming import ChunkSender

log = logging.getLogger(__name__)
_BATCH = 256
_BACKOFF_S = 0.1


class Outbox:
    """Settles what is answered. Settling may be repeated, so a broker that is away only delays it."""

    def __init__(
        self, consumer: Consumer, table: JobTable, clock: ServerClock, meter: Meter, chunks: ChunkSender
    ) -> None:
        self._consumer = consumer
        self._table = table
        self._clock = clock
        self._meter = meter
        self._chunks = chunks
        self._queue: list[tuple[ActiveJob, Reply]] = []
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._outage = Outage(log, "settling")

    def stream(self, job: ActiveJob, news: Delta) -> None:
        """Send on what has been added to a job's text, to a caller who reads along: the first words at once, more together with
        what comes meanwhile."""
        self._count(job, news.tokens)
        job.generated += news.tokens
        if job.streams:
            self._chunks.add(job, news)

    def _count(self, job: ActiveJob, tokens: int) -> None:
        """Record the times to first and to next tokens."""
        now, flow = self._clock.now_ms(), job.flow
        if not job.token_ms:
            self._meter.first_token(flow, max(0.0, now - job.enqueued_ms))  # the clock may have been set back
        elif tokens:
            self._meter.next_tokens(flow, tokens, max(0.0, now - job.token_ms))
        job.token_ms = now

    def send(self, job: ActiveJob, output: object) -> None:
        """Queue the reply of a job: its output, or an `FmplexError`."""
        error = output if isinstance(output, FmplexError) else None
        total_ms = max(0.0, self._clock.now_ms() - job.enqueued_ms)
        reply = Reply(
            output=None if error else output,
            error=error,
            version=job.version,
            worker=self._consumer.worker,
            units=job.units,
            queue_ms=max(0.0, total_ms if job.wait_ms is None else job.wait_ms),
            run_ms=job.run_ms,
            load_ms=job.load_ms,
        )
        job.claimed.spent, job.claimed.tokens = job.charged, _tokens(job, output)
        self._chunks.end(job)
        self._meter.answered(job.flow, failed=error is not None, latency_ms=total_ms, wait_ms=reply.queue_ms)
        if error is None and job.prepared.kind == "generate":
            self._count(job, 1)  # its last token was not streamed: the reply has it
            self._meter.generated(job.flow, cast(dict[str, Any], output))
        self._queue.append((job, reply))
        self._filled.set()
        self._empty.clear()

    async def run(self) -> None:
        """Settle replies, for ever."""
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
            await self._settle([(job, encode_reply(reply)) for job, reply in batch])
            if not self._queue:
                self._filled.clear()
                self._empty.set()

    async def _settle(self, batch: list[tuple[ActiveJob, bytes]]) -> None:
        while True:
            try:
                await self._consumer.settle([(job.claimed, payload) for job, payload in batch])
                self._outage.over()
                break
            except BrokerUnavailable as e:
                self._outage.say(e)
                await asyncio.sleep(_BACKOFF_S)
        for job, _ in batch:
            self._table.forget(job)

    async def flushed(self) -> None:
        """Wait until all that was answered is settled."""
        await self._empty.wait()


def _tokens(job: ActiveJob, output: object) -> int:
    """Return the tokens that a job's vFM is charged for it, against its rate: none if no pass of it has run; else those that it
    has read and, if it generates, written, once each, however often they were computed."""
    if not job.begun:
        return 0
    if job.prepared.kind == "generate" and isinstance(output, dict):
        return int(output["prompt_tokens"]) + int(output["completion_tokens"])
    return job.units + job.generated
