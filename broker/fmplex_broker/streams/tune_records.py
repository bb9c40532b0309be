"""Reading the records of tuning jobs, and what is left to be done for those that have ended."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from fmplex_broker.specs.tune_records import FIELDS, TuneRecord
from fmplex_broker.streams.connection import Client, broker_errors
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.keys import Keys

log = logging.getLogger(__name__)


async def read_tunes(redis: Client, jobs: Sequence[tuple[str, str]]) -> list[TuneRecord | None]:
    """Read the records of tuning jobs, each an id and its backbone; None for what has gone, or cannot be read. Raises as
    `broker_errors` does."""
    if not jobs:
        return []
    async with broker_errors(), redis.pipeline(transaction=False) as pipe:
        for job, backbone in jobs:
            pipe.hmget(Keys(backbone).tune(job), FIELDS)
        rows = await pipe.execute()
    return [_parsed(job, dict(zip(FIELDS, row, strict=True))) for (job, _), row in zip(jobs, rows, strict=True)]


def _parsed(job: str, fields: Mapping[str, bytes | None]) -> TuneRecord | None:
    if fields["spec"] is None:
        return None
    try:
        return TuneRecord.parse(fields)
    except ValueError as e:  # it must not keep others from being read
        log.error("the record of tuning job %s cannot be read: %s", job, e)
        return None


async def tidy(redis: Client, backbone: str) -> None:
    """Let go the files of tuning jobs that have ended and that no worker has in hand any more. Again changes nothing. Whoever
    ends a job does it, and whoever comes by for those who died meanwhile. Raises as `broker_errors` does."""
    key, files = Keys(backbone).tunes_over, FileList(redis)
    async with broker_errors():
        over = [job.decode() for job in await redis.smembers(key)]
    for job, record in zip(over, await read_tunes(redis, [(job, backbone) for job in over]), strict=True):
        if record is not None and record.worker is not None:
            continue
        for file in record.spec.files if record is not None else ():
            await files.release(file, job)
        async with broker_errors():
            await redis.srem(key, job)
