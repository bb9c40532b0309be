"""What claimed jobs carry beside their entries: large payloads, and parts that several jobs share."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_broker.streams.batches import cut
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import Part, SharedPayload, split


async def fetch_payloads(redis: Client, keys: Keys, jobs: Sequence[Claimed]) -> None:
    """Complete the payloads of jobs. One that is not there any more (its job has waited too long) stays empty. Jobs that share a
    part get the same one. Raises `BrokerUnavailable`."""
    large = {keys.blob(job.job): job.stored_bytes for job in jobs if not job.payload}
    wanted = {keys.part(job.flow.vfm, name): size for job in jobs for name, size in job.part_sizes.items()}
    found = await _read(redis, large | wanted)
    parts = {key: Part(found[key]) for key in wanted if key in found}
    for job in jobs:
        own, _ = split(job.payload)
        own = own or found.get(keys.blob(job.job), b"")
        shared = [parts.get(keys.part(job.flow.vfm, name)) for name in job.part_sizes]
        there = tuple(part for part in shared if part is not None)
        if not shared:
            job.payload = own
        else:
            job.payload = SharedPayload(own, there) if own and len(there) == len(shared) else b""


async def _read(redis: Client, sizes: dict[str, int]) -> dict[str, bytes]:
    """Read strings by their keys, those that are there. `sizes`: what they have about, so that no reply is too large."""
    found: dict[str, bytes] = {}
    for batch in cut(list(sizes), lambda key: sizes[key]):
        async with broker_errors():
            values = await redis.mget(batch)
        found |= {key: value for key, value in zip(batch, values, strict=True) if value is not None}
    return found
