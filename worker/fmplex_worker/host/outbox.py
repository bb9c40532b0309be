"""The way out: replies are encoded and settled in batches, off the step path."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import Reply, encode_reply
from fmplex_broker.wire.streaming import Delta
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.host.stats import Meter
from fmplex_worker.host.streaming import ChunkSender

log = logging.getLogger(__name__)
_BATCH = 256
_BACKOFF_S = 0.1


class Outbox:
    """Settles what is finished. Settling may be repeated, so a broker that is away only delays it."""

    def __init__(self, consumer: Consumer, window: JobTable, clock: ServerClock, meter: Meter) -> None:
        self._consumer = consumer
        self._window = window
        self._clock = clock
        self._meter = meter
        self._teller = ChunkSender(consumer)
        self._queue: list[tuple[ActiveJob, Reply]] = []
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def tell(self, held: ActiveJob, news: Delta) -> None:
        """More of its text has come; whoever reads along hears of the first of it at once, of more with what comes meanwhile."""
        self._count(held, news.tokens)
        if held.streams:
            self._teller.add(held, news)

    def _count(self, held: ActiveJob, tokens: int) -> None:
        now, vfm = self._clock.now_ms(), held.job.flow.vfm
        if not held.token_ms:
            self._meter.first_token(vfm, now - held.job.enqueued_ms)
        elif tokens:
            self._meter.next_tokens(vfm, tokens, now - held.token_ms)
        held.token_ms = now

    def answer(self, held: ActiveJob, output: object) -> None:
        """Queue the reply of one job: its output, or an `FmplexError`."""
        if held.done:
            return  # it expired or was cancelled meanwhile, and that was its answer
        now = self._clock.now_ms()
        error = output if isinstance(output, FmplexError) else None
        total_ms = max(0.0, now - held.job.enqueued_ms)
        reply = Reply(
            output=None if error else output,
            error=error,
            version=held.job.digest,
            worker=self._consumer.worker,
            units=held.units,
            queue_ms=max(0.0, total_ms if held.wait_ms is None else held.wait_ms),
            run_ms=held.run_ms,
            load_ms=held.load_ms,
        )
        held.job.spent = held.spent
        self._window.finish(held)
        self._teller.end(held)
        self._meter.answered(held.job.flow.vfm, failed=error is not None, latency_ms=total_ms, wait_ms=reply.queue_ms)
        if error is None and held.prepared is not None and held.prepared.memory:
            self._count(held, 1)  # its last token has not been told
            self._meter.generated(held.job.flow.vfm, cast(dict[str, Any], output))
        self._queue.append((held, reply))
        self._filled.set()
        self._empty.clear()

    async def tell_all(self) -> None:
        """The task that sends what `tell` gathers."""
        await self._teller.run()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
            await self._settle([(held, encode_reply(reply)) for held, reply in batch])
            if not self._queue:
                self._filled.clear()
                self._empty.set()

    async def _settle(self, batch: list[tuple[ActiveJob, bytes]]) -> None:
        while True:
            try:
                await self._consumer.settle([(held.job, payload) for held, payload in batch])
                break
            except BrokerUnavailable as e:
                log.warning("settle: %s; trying again", e)
                await asyncio.sleep(_BACKOFF_S)
        for held, _ in batch:
            self._window.drop(held)

    async def flushed(self) -> None:
        """Wait until all that was answered is settled."""
        await self._empty.wait()
