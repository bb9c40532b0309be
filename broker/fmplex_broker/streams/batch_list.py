"""The list of batches: their records in Redis, who feeds which, and how far each is.

Keys begin with `{batches}:`, beside those of files; times are the server's.

| key | type, life | content |
|---|---|---|
| `batch:<id>` | hash, its window and 30 days | the record: `BatchRecord`, and `owner`, `input`, `holder`, `done` (a bit a line) |
| `parts:<id>` | list, while it is open | names of the parts that hold the rows of lines that are done |
| `batches-open` | zset | batch that is not over -> when the lease of its holder ends (ms), or was given back, or 0 |
| `batches:<owner>` | zset, all scores 0, TTL | batches of an owner; ids sort by the time they were made |
| `batches-open:<owner>` | set, TTL | those of them that have not ended |

A holder is a token that no other take has, so what one that was stopped or slept does later is refused (`lost`).
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fmplex_broker.errors import Busy, Conflict, InvalidInput, UnknownBatch, UnknownFile
from fmplex_broker.specs.batches import (
    ENDED,
    FIELDS,
    NEXT,
    BatchRecord,
    Order,
    Status,
    is_batch_id,
    oldest_id,
    window_s,
)
from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import BATCHES
from fmplex_broker.streams.producer import new_id

log = logging.getLogger(__name__)
LEASE_MS = 10_000
KEPT_S = 30 * 86_400  # the record of a batch, after it has ended
MOST_OPEN = 2_000  # of an owner
_LIST_S = KEPT_S + 7 * 86_400
_VFMS = f"{BATCHES}vfms"  # scripts find their keys beside it
_OPEN = f"{BATCHES}batches-open"
LOST = "lost"


class Lost(Exception):
    """Somebody else feeds the batch now, or nobody needs it any more: what is done for it here is not wanted."""


@dataclass(frozen=True, slots=True)
class Held:
    """A batch that was taken. `holder`: the token that says so; `done`: a bit a line, the first is the lowest of the first byte;
    `parts`: names of those that hold the rows of the lines that are done."""

    record: BatchRecord
    holder: str
    done: bytes
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """What was said to the renewal of a lease. `status`: of the batch, `lost` if it is held here no more; `input_there`: its file
    was not deleted."""

    status: str
    input_there: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is: `done` as in `Held`, how many lines were `completed` and `failed`, and what `versions` have
    answered."""

    done: bytes
    completed: int
    failed: int
    versions: Sequence[str]


class BatchList:
    """The records of all batches. One of another owner looks exactly like one that is not there. Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client, scripts: Scripts) -> None:
        self._redis = redis
        self._scripts = scripts

    # --- for who orders ---

    async def create(self, order: Order) -> BatchRecord:
        """Add a batch; again changes nothing. It holds its input file until it ends. Raises `UnknownFile`, and `Busy` when its
        owner has too many open ones."""
        args: list[Arg] = [
            order.id, order.owner, order.model_dump_json(), order.input_file_id, window_s(order.completion_window),
            KEPT_S * 1000, MOST_OPEN, oldest_id(time.time() - _LIST_S),
        ]  # fmt: skip
        state = await self._scripts("batch_create", _VFMS, args)
        if state == b"no_file":
            raise UnknownFile.of(order.input_file_id)
        if state == b"many":
            raise Busy(
                f"{order.owner!r} has {MOST_OPEN} open batches; wait until one has ended, or put their lines into fewer files",
                retry_after=60.0,
            )
        return await self.find(order.id, order.owner)

    async def find(self, batch: str, owner: str) -> BatchRecord:
        """Read the record of a batch. Raises `UnknownBatch`."""
        record = (await self._records([batch]))[0] if is_batch_id(batch) else None
        if record is None or record.order.owner != owner:
            raise UnknownBatch.of(batch)
        return record

    async def page(self, owner: str, limit: int = 20, after: str = "") -> tuple[list[BatchRecord], bool]:
        """Read the first `limit` batches of an owner, the newest first, that were made before the batch `after`; True if there
        are more. Raises `InvalidInput` for an `after` that no batch can have."""
        if after and not is_batch_id(after):
            raise InvalidInput(f"{after[:64]!r} is not the id of a batch; give the last one of a page", field="after")
        key = f"{BATCHES}batches:{owner}"
        async with broker_errors():
            ids = await self._redis.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, limit + 1)
        records = await self._records([name.decode() for name in ids[:limit]])
        return [record for record in records if record is not None], len(ids) > limit

    async def cancel(self, batch: str, owner: str) -> BatchRecord:
        """Cancel a batch: lines that are not answered yet will not be. Again, or once its last line is answered, changes nothing.
        Raises `UnknownBatch`, and `Conflict` for one that has ended otherwise."""
        await self.find(batch, owner)
        status = (await self._scripts("batch_cancel", _VFMS, [batch])).decode()
        if status in ENDED - {"cancelled"}:
            raise Conflict(f"batch {batch} has ended: it is {status}; there is nothing left to cancel", field="status")
        return await self.find(batch, owner)

    # --- for who feeds ---

    async def take(self, most: int, lease_ms: int = LEASE_MS) -> list[Held]:
        """Take open batches that nobody feeds, those that have waited longest first, for `lease_ms`."""
        taken = await self._scripts("batch_take", _VFMS, [new_id(), lease_ms, most])
        names = [name.decode() for name in taken[1:]]
        held = [await self._held(batch, holder) for batch, holder in zip(names[::2], names[1::2], strict=True)]
        return [one for one in held if one is not None]

    async def renew(self, held: Mapping[str, str], lease_ms: int = LEASE_MS) -> tuple[float, dict[str, Lease]]:
        """Renew the leases of batches (id -> holder); return the server's time in seconds since 1970, and what was said to
        each."""
        args: list[Arg] = [lease_ms]
        for batch, holder in held.items():
            args += [batch, holder]
        now_ms, *said = await self._scripts("batch_renew", _VFMS, args)
        leases = [Lease(status.decode(), bool(there)) for status, there in zip(said[::2], said[1::2], strict=True)]
        return int(now_ms) / 1000, dict(zip(held, leases, strict=True))

    async def record(self, batch: str, holder: str, progress: Progress, known: int, new: Sequence[str]) -> None:
        """Record how far a batch is, and the `new` parts with the rows of the lines that are done now; `known`: how many parts it
        had before. Again changes nothing. Raises `Lost`."""
        args: list[Arg] = [
            batch, holder, known, progress.done, progress.completed, progress.failed, json.dumps(progress.versions), *new,
        ]  # fmt: skip
        if await self._scripts("batch_record", _VFMS, args) == LOST.encode():
            raise Lost(batch)

    async def move(self, batch: str, holder: str, to: Status, **fields: Any) -> str:
        """Move a batch to another state if it may go there; return the one it is in afterwards. Again changes nothing. `fields`:
        others of its record that change with it. Raises `Lost`."""
        come_from = " ".join(status for status, next_ones in NEXT.items() if to in next_ones)
        args: list[Arg] = [batch, holder, to, come_from, KEPT_S * 1000 if to in ENDED else 0]
        for name, value in fields.items():
            args += [name, value if isinstance(value, str | int) else json.dumps(value)]
        status = str((await self._scripts("batch_move", _VFMS, args)).decode())
        if status == LOST:
            raise Lost(batch)
        return status

    async def give_back(self, held: Mapping[str, str], *, over: bool = False, last: bool = False) -> None:
        """Give batches (id -> holder) back to whoever takes them next; `over`: nothing is left to be done for them; `last`: those
        that wait already are taken before them."""
        args: list[Arg] = ["over" if over else "last" if last else "first"]
        for batch, holder in held.items():
            args += [batch, holder]
        await self._scripts("batch_release", _VFMS, args)

    async def count_waiting(self, now: float) -> int:
        """Count the batches that are not over and that nobody feeds at `now` (seconds since 1970)."""
        async with broker_errors():
            return int(await self._redis.zcount(_OPEN, "-inf", int(now * 1000)))

    async def count_open(self) -> Counter[str]:
        """Count the batches that are not over, by status."""
        async with broker_errors():
            names = await self._redis.zrange(_OPEN, 0, -1)
        async with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(_key(name.decode()), "status")
            statuses = await pipe.execute()
        return Counter(status.decode() for status in statuses if status is not None)

    # --- inner ---

    async def _held(self, batch: str, holder: str) -> Held | None:
        """Read a batch that was taken; None for one that cannot be read, or has gone."""
        async with broker_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(_key(batch), [*FIELDS, "done"])
            pipe.lrange(f"{BATCHES}parts:{batch}", 0, -1)
            (*raw, done), parts = await pipe.execute()
        try:
            record = BatchRecord.parse(dict(zip(FIELDS, raw, strict=True)))
        except ValueError as e:  # it must not keep others from being taken
            log.error("the record of batch %s cannot be read: %s", batch, e)
            return None
        return Held(record, holder, done or b"", tuple(part.decode() for part in parts))

    async def _records(self, batches: Sequence[str]) -> list[BatchRecord | None]:
        """Read records; None for what has gone."""
        async with broker_errors(), self._redis.pipeline(transaction=False) as pipe:
            for batch in batches:
                pipe.hmget(_key(batch), FIELDS)
            rows = await pipe.execute()
        return [BatchRecord.parse(dict(zip(FIELDS, row, strict=True))) if row[0] is not None else None for row in rows]


def _key(batch: str) -> str:
    return f"{BATCHES}batch:{batch}"
