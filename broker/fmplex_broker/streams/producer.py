"""The producing side of one backbone's queues: enqueue, cancel, results. Many jobs a round trip."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fmplex_broker.errors import Cancelled
from fmplex_broker.streams.batches import PER_CALL, send_all
from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import Flow, Payload, Reply, encode_reply, read_reply, split

ENTRY_BYTES = 256  # that a job takes in the broker beside its payload, as enqueue.lua counts them
_CANCELLED = encode_reply(Reply(error=Cancelled("the job was cancelled before it ran")))


def new_id() -> str:
    """Make an id for a job, an inbox or a worker: 16 random hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to add. `units`: estimated price in units of work; `timeout_ms`: from now on the server's clock. `charge`: units that
    its vFM's rate must have left for it, if not its own, and `call_bytes` that must fit beside what waits: a call of many jobs
    asks for all of them on its first, so that it is taken or refused as a whole."""

    flow: Flow
    payload: Payload
    units: int
    timeout_ms: int
    job: str = field(default_factory=new_id)
    idempotency_key: str | None = None
    charge: int | None = None
    call_bytes: int = 0

    @property
    def idem(self) -> str:
        """Idempotency key under which the job is known: the caller's, else its own id."""
        return self.idempotency_key or self.job

    @property
    def request_digest(self) -> str:
        """Digest that tells apart two requests with the same idempotency key."""
        own, parts = split(self.payload)
        digest = hashlib.blake2b(f"{self.flow.cls}:{self.flow.vfm}:".encode(), digest_size=12)
        digest.update(own)
        for part in parts:
            digest.update(part.id.encode())
        return digest.hexdigest()


class StoredReply(NamedTuple):
    """Where the reply to a job lies: at its backbone under the job's id, which is found under the idempotency key."""

    backbone: str
    job: str
    idem: str


def stored_bytes(payloads: Sequence[Payload]) -> int:
    """Return how many bytes so many jobs take in the broker, what they share counted once."""
    split_up = [split(payload) for payload in payloads]
    parts = {part.id: len(part.data) for _, parts in split_up for part in parts}
    return sum(len(own) + ENTRY_BYTES for own, _ in split_up) + sum(parts.values())


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Outcome for one job. `status`: new | dup | done, or why it was refused: conflict | full | closed | stale | unknown |
    limited | full_bytes | full_backbone | large_bytes | large_backbone | failed. `job` is the job that will answer (the first one
    when the idempotency key was known); `wait_ms`: when to come back if limited; `most`: the cap in bytes that it is over."""

    status: str
    job: str
    wait_ms: int = 0
    most: int = 0


class Producer:
    """Adds to and cancels from the queues of one backbone; replies go to `inbox`."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, inbox: str = "") -> None:
        self.keys = Keys(backbone)
        self._redis = redis
        self._scripts = scripts
        self._inbox = inbox

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueResult]:
        """Add many jobs. Safe to repeat with the same jobs: a job that is there already comes back as `dup` or `done`. One that
        breaks the script comes back as `failed`, the others are added. Raises as `send_all` does."""
        got = await send_all(self._add, jobs, lambda job: len(split(job.payload)[0]))
        return [result or EnqueueResult("failed", job.job) for job, result in zip(jobs, got, strict=True)]

    async def _add(self, jobs: Sequence[NewJob]) -> list[EnqueueResult]:
        numbers: dict[str, int] = {}  # of parts: what jobs share is sent once
        parts: list[Arg] = []
        rows: list[Arg] = []
        for j in jobs:
            own, shared = split(j.payload)
            for part in shared:
                if numbers.setdefault(part.id, len(numbers) + 1) > len(parts) // 2:
                    parts += [part.id, part.data]
            rows += [j.flow.cls, j.flow.vfm, j.job, j.idem, j.request_digest]
            rows += [j.units, j.units if j.charge is None else j.charge, j.timeout_ms, j.call_bytes]
            rows += [" ".join(str(numbers[part.id]) for part in shared), own]
        head: list[Arg] = [self._inbox, len(numbers), *parts]
        return [_result(*row) for row in await self._scripts("enqueue", self.keys.vfms, [*head, *rows])]

    async def cancel(self, jobs: Sequence[tuple[Flow, str, str]], attempts: Sequence[str] = ()) -> list[str]:
        """Cancel jobs, given as (flow, job, idempotency key); for each: cancelled | told | shared | gone (see `Pending.cancel`).

        `attempts`: ids of the `NewJob`s with which they were asked for here last, if those are not the jobs' own. A job that has
        been asked for again since is `shared`.
        """
        rows = list(zip(jobs, attempts or [job for _, job, _ in jobs], strict=True))
        return [state or "gone" for state in await send_all(self._cancel, rows, lambda row: len(row[0][2]))]

    async def _cancel(self, rows: Sequence[tuple[tuple[Flow, str, str], str]]) -> list[str]:
        args: list[Arg] = [self._inbox, _CANCELLED]
        for (flow, job, idem), attempt in rows:
            args += [f"{flow.cls}:{flow.vfm}", job, idem, attempt]
        return [state.decode() for state in await self._scripts("cancel", self.keys.vfms, args)]

    async def results(self, jobs: Sequence[str]) -> list[Reply | None]:
        """Read the stored replies, None where there is none (yet, or any more). Raises `BrokerUnavailable`."""
        raw: list[Any] = []
        for start in range(0, len(jobs), PER_CALL):
            async with broker_errors():
                raw += await self._redis.mget([self.keys.result(job) for job in jobs[start : start + PER_CALL]])
        return [read_reply(r) if r is not None else None for r in raw]

    async def forget(self, stored: Sequence[StoredReply]) -> None:
        """Delete stored replies, and the idempotency keys that lead to them. Raises `BrokerUnavailable`."""
        for start in range(0, len(stored), PER_CALL):
            part = stored[start : start + PER_CALL]
            async with broker_errors():
                await self._redis.unlink(
                    *(key for s in part for key in (self.keys.result(s.job), self.keys.idem(s.idem)))
                )


def _result(status: bytes, job: bytes, extra: int) -> EnqueueResult:
    word = status.decode()
    if word == "limited":
        return EnqueueResult(word, job.decode(), wait_ms=int(extra))
    return EnqueueResult(word, job.decode(), most=int(extra))
