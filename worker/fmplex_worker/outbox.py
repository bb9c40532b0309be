"""The way out: replies are encoded and settled in batches, off the step path."""

from __future__ import annotations

import asyncio
import logging

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.messages import Reply, encode_reply
from fmplex_broker.streams.consumer import Consumer
from fmplex_worker.clock import ServerClock
from fmplex_worker.stats import Meter
from fmplex_worker.window import Held, Window

log = logging.getLogger(__name__)
_BATCH = 256
_BACKOFF_S = 0.1


class Outbox:
    """Settles what is finished. Settling may be repeated, so a broker that is away only delays it."""

    def __init__(self, consumer: Consumer, window: Window, clock: ServerClock, meter: Meter) -> None:
        self._consumer = consumer
        self._window = window
        self._clock = clock
        self._meter = meter
        self._queue: list[tuple[Held, Reply]] = []
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def answer(self, held: Held, output: object, run_ms: float = 0.0, spent: float = 0.0) -> None:
        """Queue the reply of one job: its output, or an `FmplexError`. It has `spent` so many units, none if it did not run."""
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
            queue_ms=max(0.0, total_ms - run_ms),
            run_ms=run_ms,
            load_ms=held.load_ms,
        )
        held.job.spent = spent
        self._window.finish(held)
        self._meter.answered(held.job.flow.vfm, failed=error is not None, latency_ms=total_ms, wait_ms=reply.queue_ms)
        self._queue.append((held, reply))
        self._filled.set()
        self._empty.clear()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[:_BATCH], self._queue[_BATCH:]
            await self._settle([(held, encode_reply(reply)) for held, reply in batch])
            if not self._queue:
                self._filled.clear()
                self._empty.set()

    async def _settle(self, batch: list[tuple[Held, bytes]]) -> None:
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
