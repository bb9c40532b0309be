"""The producing side of one backbone's queues: enqueue, cancel, results. Many jobs a round trip."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fmplex_broker.errors import Cancelled
from fmplex_broker.streams.connection import Arg, Client, Scripts, broker_errors
from fmplex_broker.streams.keys import Keys
from fmplex_broker.wire.messages import Flow, Reply, encode_reply, read_reply

PER_CALL = 64  # larger scripts hold the server without being faster
RESULT_TTL_MS = 60_000  # how long a reply can be asked for again; at thousands a second, minutes would fill the server
_CANCELLED = encode_reply(Reply(error=Cancelled("the job was cancelled before it ran")))


def new_id() -> str:
    """Make an id for a job, an inbox or a worker: 16 random hex digits."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to add. `units`: estimated price in units of work; `timeout_ms`: from now on the server's clock; `charge`: units it
    costs its vFM's rate, if not its own (a call of many jobs is charged once, so that it is taken or refused as a whole)."""

    flow: Flow
    payload: bytes
    units: int
    timeout_ms: int
    job: str = field(default_factory=new_id)
    idempotency_key: str | None = None
    charge: int | None = None

    @property
    def idem(self) -> str:
        """Idempotency key under which the job is known: the caller's, else its own id."""
        return self.idempotency_key or self.job

    @property
    def request_digest(self) -> str:
        """Digest that tells apart two requests with the same idempotency key."""
        text = f"{self.flow.cls}:{self.flow.vfm}:".encode()
        return hashlib.blake2b(text + self.payload, digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """Outcome for one job. `status`: new | dup | done | conflict | full | closed | stale | unknown | limited. `job` is the job
    that will answer (the first one when the idempotency key was known); `wait_ms`: when to come back if limited."""

    status: str
    job: str
    wait_ms: int


class Producer:
    """Adds to and cancels from the queues of one backbone; replies go to `inbox`."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, inbox: str = "") -> None:
        self.keys = Keys(backbone)
        self._redis = redis
        self._scripts = scripts
        self._inbox = inbox

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueResult]:
        """Add many jobs. Safe to repeat with the same jobs: a job that is there already comes back as `dup` or `done`."""
        out: list[EnqueueResult] = []
        for start in range(0, len(jobs), PER_CALL):
            args: list[Arg] = [self._inbox, RESULT_TTL_MS]
            for j in jobs[start : start + PER_CALL]:
                charge = j.units if j.charge is None else j.charge
                args += [
                    j.flow.cls,
                    j.flow.vfm,
                    j.job,
                    j.idem,
                    j.request_digest,
                    j.units,
                    charge,
                    j.timeout_ms,
                    j.payload,
                ]
            for status, job, wait in await self._scripts("enqueue", self.keys.vfms, args):
                out.append(EnqueueResult(status.decode(), job.decode(), int(wait)))
        return out

    async def cancel(self, jobs: Sequence[tuple[Flow, str, str]]) -> list[str]:
        """Cancel jobs, given as (flow, job, idempotency key); for each: cancelled | told | shared | gone (see
        `Pending.cancel`)."""
        out: list[str] = []
        for start in range(0, len(jobs), PER_CALL):
            args: list[Arg] = [self._inbox, RESULT_TTL_MS, _CANCELLED]
            for flow, job, idem in jobs[start : start + PER_CALL]:
                args += [f"{flow.cls}:{flow.vfm}", job, idem]
            out += [state.decode() for state in await self._scripts("cancel", self.keys.vfms, args)]
        return out

    async def results(self, jobs: Sequence[str]) -> list[Reply | None]:
        """Read the stored replies, None where there is none (yet, or any more). Raises `BrokerUnavailable`."""
        raw: list[Any] = []
        for start in range(0, len(jobs), PER_CALL):
            async with broker_errors():
                raw += await self._redis.mget([self.keys.result(job) for job in jobs[start : start + PER_CALL]])
        return [read_reply(r) if r is not None else None for r in raw]
