"""The server dies, stops, or hands over to a replica: what was answered is still so."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from tests.contract.harness import BACKBONE, Bench, answer, job, restart
from tests.support.waiting import until_soon


async def state(bench: Bench) -> dict[str, Any]:
    """All that the protocol remembers."""
    redis, keys = bench.redis, bench.keys
    names = sorted(await bench.names())
    return {
        "names": names,
        "pending": {(v, c): await bench.pending(v, c) for v in "ab" for c in (INTERACTIVE, OFFLINE)},
        "entries": {n: await redis.xrange(keys.prefix + n) for n in names if n.startswith(("q:", "in:", "dead:"))},
        "ready": [await bench.ready(c) for c in (INTERACTIVE, OFFLINE)],
        "back": await redis.zrange(keys.back, 0, -1, withscores=True),
        "wake": await redis.xrange(keys.wake),
        "leases": await redis.zrange(keys.leases, 0, -1, withscores=True),
        "vfms": await redis.hgetall(keys.vfms),
        "held": {n: await redis.hgetall(keys.prefix + n) for n in names if n.startswith("held:")},
        "idem": {n: await redis.get(keys.prefix + n) for n in names if n.startswith(("idem:", "res:", "blob:"))},
    }


async def busy(bench: Bench) -> tuple[Consumer, Consumer]:
    """Something of everything: waiting, running, given back, redelivered, settled, a dead letter, a large payload."""
    await bench.serve("a", weight=3)
    await bench.serve("b")
    worker, dead = await bench.worker(), await bench.worker("dead")
    await bench.enqueue(*(job("ab"[i % 2], cls=(INTERACTIVE, OFFLINE)[i % 3 == 0]) for i in range(60)))
    await bench.enqueue(job(payload=b"x" * 70_000, key="large"))
    held = await bench.claimed(dead, interactive=8, offline=4)
    await dead.mark(held[:3])
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=2)
    again = await bench.claimed(worker, room=6)
    await worker.mark(again[:2])
    await worker.settle([(j, answer()) for j in again[2:4]])
    await worker.release(again[4:])
    return worker, dead


async def finish(bench: Bench, worker: Consumer) -> None:
    """Go on with the work as if nothing had happened; all of it ends, once."""
    assert await worker.recover([])
    while True:
        claim = await worker.claim({INTERACTIVE: 64, OFFLINE: 64})
        await worker.settle([(j, answer()) for j in claim.jobs])
        if not claim.jobs and not claim.more:
            break
    assert [await bench.depth(v, c) for v in "ab" for c in (INTERACTIVE, OFFLINE)] == [0] * 4
    assert sorted({m.job for m in await bench.mail()}) == sorted(m.job for m in await bench.mail())
    assert len(await bench.mail()) == 61


async def test_sigkill_and_restart_keep_everything(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    worker, _ = await busy(bench)
    before = await state(bench)
    assert any(attempts == 2 for _, attempts in before["pending"]["a", INTERACTIVE].values())
    assert before["back"]
    await restart(server, bench.redis)
    assert await state(bench) == before
    await finish(bench, worker)


async def test_with_appendfsync_everysec_what_was_synced_is_kept(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.redis.config_set("appendfsync", "everysec")
    worker, _ = await busy(bench)
    before = await state(bench)
    local, _ = await bench.redis.waitaof(1, 0, 5_000)
    assert local == 1
    await restart(server, bench.redis)
    assert await state(bench) == before
    await finish(bench, worker)


async def test_an_enqueue_repeated_across_a_restart_adds_nothing(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.serve("a")
    sent = [job() for _ in range(3)]
    assert await bench.enqueue(*sent) == ["new"] * 3
    await restart(server, bench.redis)
    assert await bench.enqueue(*sent) == ["dup"] * 3


async def test_after_an_outage_longer_than_a_lease_nobody_is_taken_over(
    crashable: tuple[EmbeddedServer, Bench],
) -> None:
    """SIGSTOP: to a server that wakes up, every lease has expired. Whoever beats again lives on."""
    server, bench = crashable
    await bench.serve("a")
    one, two = await bench.worker("one", lease_ms=200), await bench.worker("two", lease_ms=200)
    await bench.enqueue(job(), job())
    held = {w: (await bench.claimed(w, room=1)) for w in (one, two)}
    os.kill(server.pid, signal.SIGSTOP)
    beats = [asyncio.create_task(w.beat()) for w in (one, two)]
    await asyncio.sleep(0.45)  # 2.2 leases
    os.kill(server.pid, signal.SIGCONT)
    assert all(b.alive for b in await asyncio.gather(*beats))
    assert (await one.reap(0, max_attempts=3)).state == "wait"  # its count of steady time has begun anew
    for worker, jobs in held.items():
        assert await worker.settle([(j, answer()) for j in jobs]) == [True]


async def test_a_blocked_listener_survives_the_outage(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.serve("a")
    worker = await bench.worker()
    await bench.claimed(worker)
    assert (await worker.listen()).changed  # all that was said before
    listening = asyncio.create_task(worker.listen())
    await asyncio.sleep(0.02)
    server.kill()
    try:
        await asyncio.wait_for(listening, 5)
    except BrokerUnavailable:
        server.start()
    await bench.enqueue(job())
    assert (await asyncio.wait_for(worker.listen(), 2)).woken


async def test_a_replica_takes_over_with_all_that_was_waited_for(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, primary = crashable
    with EmbeddedServer() as standby:
        redis = open_redis(standby.url)
        await primary.redis.config_set("repl-diskless-sync-delay", 0)
        await redis.replicaof("127.0.0.1", str(server.port))
        worker, _ = await busy(primary)

        async def in_step() -> bool:
            return bool(await primary.redis.wait(1, 100))

        await until_soon(in_step, patience_s=15)
        before = await state(primary)
        server.kill()
        await redis.replicaof("NO", "ONE")
        replica = Bench(redis, Scripts(redis))
        assert await state(replica) == before
        moved = Consumer(redis, replica.scripts, BACKBONE, worker.worker, lease_ms=60_000)
        await finish(replica, moved)
        await redis.aclose()
        server.start()
