"""A worker that answers what it is told to, beside a gateway's application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Reply, encode_reply
from tests.contract.harness import ended
from tests.unit.gateway.site import Site


@asynccontextmanager
async def answering(place: Site, reply: Callable[[Claimed], Reply]) -> AsyncIterator[list[Claimed]]:
    """Answer every job, of either class, by `reply`, until the block ends; yields the jobs that were answered."""
    worker = await place.worker()
    seen: list[Claimed] = []

    async def work() -> None:
        while True:
            jobs = (await worker.claim({INTERACTIVE: 64, OFFLINE: 64})).jobs
            seen.extend(jobs)
            await worker.settle([(job, encode_reply(reply(job))) for job in jobs])
            await asyncio.sleep(0.005)

    working = asyncio.create_task(work())
    try:
        yield seen
    finally:
        await ended(working)
        await worker.leave()
