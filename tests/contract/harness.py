"""What the contract tests are written with: a bench on one server, and ways to end tasks and servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import ConnectionError

from fmplex_broker.specs.fingerprint import Fingerprint
from fmplex_broker.specs.heads import Embedding, Head
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.keys import BYTES, REGISTRY_VFMS, Keys
from fmplex_broker.streams.keys import HOSTED as HOSTED_FIELD
from fmplex_broker.streams.producer import NewJob, Producer, new_id
from fmplex_broker.wire.messages import INTERACTIVE, Flow, Payload, Reply, decode_reply, encode_reply
from tests.support.hosting import HOSTED
from tests.support.waiting import until_soon

BACKBONE = "minilm"
LEASE_MS = 60_000  # nobody dies unless the test says so


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and wait. Again and again: fakeredis loses cancellations on Python 3.11."""
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)


async def connected(redis: aioredis.Redis) -> None:
    """Let a client notice that its connections are gone, and make new ones."""

    async def answers() -> bool:
        with suppress(ConnectionError):
            return bool(await redis.ping())
        return False

    await until_soon(answers)


async def restart(server: EmbeddedServer, redis: aioredis.Redis) -> None:
    """SIGKILL, then start on the same folder."""
    server.kill()
    server.start()
    await connected(redis)


def job(
    vfm: str = "a",
    payload: Payload = b"hello",
    *,
    cls: str = INTERACTIVE,
    units: int = 1,
    timeout_ms: int = 10_000,
    key: str | None = None,
    id: str | None = None,
) -> NewJob:
    return NewJob(Flow(vfm, cls), payload, units, timeout_ms, id or new_id(), key)


def answer(output: Any = "done") -> bytes:
    return encode_reply(Reply(output=output))


@dataclass(frozen=True)
class Mail:
    """One message of an inbox: a reply (`body`, empty if it travels by key) or a chunk."""

    job: str
    body: bytes | None
    chunk: bytes | None

    @property
    def reply(self) -> Reply:
        assert self.body
        return decode_reply(self.body)


class Bench:
    """One backbone on one server, with short ways to say what a test wants to say."""

    def __init__(self, redis: aioredis.Redis, scripts: Scripts) -> None:
        self.redis = redis
        self.scripts = scripts
        self.keys = Keys(BACKBONE)

    # --- who takes part ---

    def producer(self, inbox: str = "client") -> Producer:
        return Producer(self.redis, self.scripts, BACKBONE, inbox)

    async def worker(self, name: str = "w1", lease_ms: int = LEASE_MS, hosts: Fingerprint = HOSTED) -> Consumer:
        consumer = Consumer(self.redis, self.scripts, BACKBONE, name, lease_ms=lease_ms)
        assert (await consumer.join(hosts)).alive
        return consumer

    async def hosts(self, backbone: str) -> None:
        """Let workers that host the usual have been on a backbone, and have gone."""
        told = f"{HOSTED.digest}|{HOSTED.model_dump_json()}"
        await self.redis.hset(Keys(backbone).vfms, HOSTED_FIELD, told)

    async def serve(
        self,
        *vfms: str,
        cap: int = 10_000,
        weight: float = 1.0,
        rate: float = 0,
        max_bytes: int = 0,
        digest: str = "v1",
        head: Head | None = None,
    ) -> None:
        """Make vFMs serve: offered, and accepted by every live worker (or one that comes and goes for it)."""
        voters = await self.redis.zrangebyscore(self.keys.leases, 1, "+inf")
        setup = None if voters else await self.worker("setup")
        for vfm in vfms:
            spec = VfmSpec(name=vfm, backbone=BACKBONE, head=head or Embedding())
            await self.redis.hset(REGISTRY_VFMS, vfm, BACKBONE)
            args = [vfm, digest, spec.model_dump_json(), -1, cap, weight, rate, max_bytes]
            assert (await self.scripts("propose", self.keys.vfms, args))[0] == b"ok"
            for voter in voters or [b"setup"]:
                state, _ = await self.scripts("vote", self.keys.vfms, [vfm, digest, voter, ""])
            assert state == b"serving"
        if setup:
            await setup.leave()

    async def enqueue(self, *jobs: NewJob, inbox: str = "client") -> list[str]:
        """Enqueue jobs; return their statuses."""
        return [got.status for got in await self.producer(inbox).enqueue(jobs)]

    async def claimed(self, worker: Consumer, room: int = 256, **classes: int) -> list[Claimed]:
        """Make one claim that must succeed."""
        claim = await worker.claim(classes or {INTERACTIVE: room})
        assert claim.state == "ok"
        return claim.jobs

    async def lapse(self, worker: Consumer) -> None:
        """Let the worker not have been heard of for a lease: exactly what time passing does to its key."""
        await self.redis.zadd(self.keys.leases, {worker.worker: 1}, xx=True)

    # --- what is there ---

    async def mail(self, inbox: str = "client") -> list[Mail]:
        raw = await self.redis.xrange(self.keys.inbox(inbox))
        return [Mail(f[b"j"].decode(), f.get(b"r"), f.get(b"p")) for _, f in raw]

    async def result(self, job_id: str) -> Reply | None:
        return (await self.producer().results([job_id]))[0]

    async def depth(self, vfm: str = "a", cls: str = INTERACTIVE) -> int:
        return int(await self.redis.xlen(self.keys.queue(Flow(vfm, cls))))

    async def pending(self, vfm: str = "a", cls: str = INTERACTIVE) -> dict[str, tuple[str, int]]:
        """Return entry -> (consumer, attempts)."""
        rows = await self.redis.xpending_range(self.keys.queue(Flow(vfm, cls)), "w", "-", "+", 10_000)
        return {r["message_id"].decode(): (r["consumer"].decode(), r["times_delivered"]) for r in rows}

    async def counted(self, vfm: str = "") -> int:
        """Return the bytes that are counted for a vFM, or for the backbone."""
        return int(await self.redis.hget(self.keys.vfms, vfm + BYTES) or 0)

    async def ready(self, cls: str = INTERACTIVE) -> dict[str, float]:
        rows = await self.redis.zrange(self.keys.ready(cls), 0, -1, withscores=True)
        return {name.decode(): score for name, score in rows}

    async def back(self) -> list[str]:
        return [name.decode() for name in await self.redis.zrange(self.keys.back, 0, -1)]

    async def rings(self) -> int:
        """Count how often the wake stream has been rung."""
        return int(await self.redis.xlen(self.keys.wake))

    async def names(self) -> set[str]:
        """Return all keys of the backbone, without its prefix."""
        return {k.decode().removeprefix(self.keys.prefix) async for k in self.redis.scan_iter(self.keys.prefix + "*")}
