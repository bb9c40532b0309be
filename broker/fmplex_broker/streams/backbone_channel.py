"""One backbone as a client of the queues sees it: where jobs go and where their replies come from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from fmplex_broker.errors import BrokerUnavailable, FmplexError
from fmplex_broker.streams.batches import PER_CALL
from fmplex_broker.streams.connection import Client, Scripts
from fmplex_broker.streams.inbox import Inbox
from fmplex_broker.streams.producer import EnqueueResult, NewJob, Producer


class BackboneChannel:
    """Producer and inbox of one backbone, and the batch of enqueues that gathers while one is under way. `client`: names the
    inbox."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, client: str) -> None:
        self.producer = Producer(redis, scripts, backbone, client)
        self.inbox = Inbox(redis, backbone, client, self.producer.results)
        self._gathered: list[tuple[NewJob, asyncio.Future[EnqueueResult]]] = []
        self._flusher: asyncio.Task[None] | None = None
        self._cleaners: set[asyncio.Task[None]] = set()

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueResult]:
        """Enqueue jobs together with those of other callers; repeated once when the broker does not answer.

        Raises `BrokerUnavailable`. Whoever stops waiting calls `abandon`.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[EnqueueResult]] = [loop.create_future() for _ in jobs]
        self._gathered += zip(jobs, futures, strict=True)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        return await asyncio.gather(*futures)

    async def _flush(self) -> None:
        while self._gathered:
            batch, self._gathered = self._gathered[:PER_CALL], self._gathered[PER_CALL:]
            batch = [(job, future) for job, future in batch if not future.done()]  # done: its caller has gone
            try:
                for (_, future), got in zip(batch, await self._send([j for j, _ in batch]), strict=True):
                    if not future.done():
                        future.set_result(got)
            except Exception as e:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(e)

    async def _send(self, jobs: list[NewJob]) -> list[EnqueueResult]:
        try:
            return await self.producer.enqueue(jobs)
        except BrokerUnavailable:
            # The idempotency keys make a second send safe, whether or not the first one arrived.
            await asyncio.sleep(0.1)
            return await self.producer.enqueue(jobs)

    def abandon(self, jobs: Sequence[NewJob]) -> None:
        """Cancel what was queued, or is just being queued, for a caller of `enqueue` that has gone or was told of a failure."""
        cleaner = asyncio.create_task(self._take_back(jobs))
        self._cleaners.add(cleaner)
        cleaner.add_done_callback(self._cleaners.discard)

    async def _take_back(self, jobs: Sequence[NewJob]) -> None:
        if self._flusher is not None:
            await asyncio.wait([self._flusher])
        with suppress(FmplexError):
            await self.producer.cancel([(j.flow, j.job, j.idem) for j in jobs])

    async def close(self) -> None:
        """Wait for what is under way, then close the inbox: nobody is answered afterwards."""
        ending = [*self._cleaners, *([self._flusher] if self._flusher else [])]
        await asyncio.gather(*ending, return_exceptions=True)
        await self.inbox.close()
