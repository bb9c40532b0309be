"""The protocol under attack: everything that can go wrong goes wrong, at random, all the time.

Three workers, twenty vFMs, four clients, on a real server behind a proxy that cuts connections before, after and late.
Meanwhile workers' tasks are cancelled at any await, workers are paused beyond their lease, some jobs kill whoever runs them,
the server is killed and started again or stopped for longer than a lease, and consumer groups are destroyed. At the end

- nothing is lost: every job that was accepted has a result;
- nothing is answered twice: no inbox has two replies for one job, and whoever sent it has exactly one;
- nothing is stuck: no entry waits, is pending, or is listed as given back;
- nobody is blamed wrongly: dead letters are poison, and poison only.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fmplex_broker.messages import CLASSES, INTERACTIVE, Flow, decode_reply
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.producer import NewJob
from tests.contract.harness import Bench, job, keys_without_ttl, restart, until
from tests.contract.proxy import CuttingProxy
from tests.contract.swarm import LEASE_MS, POISON, Client, Ledger, Worker

ROUNDS = 4
VFMS = [f"v{n}" for n in range(20)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        given = metafunc.config.getoption("--attack-seed")
        seeds = [given] if given is not None else [random.SystemRandom().randrange(10**6) for _ in range(ROUNDS)]
        metafunc.parametrize("seed", seeds, ids=[f"seed{s}" for s in seeds])


class Chaos:
    """Does one bad thing after another."""

    def __init__(self, server: EmbeddedServer, bench: Bench, workers: list[Worker], rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._server = server
        self._bench = bench
        self._workers = workers
        self._rng = rng
        # How often each, against the others.
        self._weights = {
            self.cancel_a_task: 20,
            self.pause_a_worker: 3,
            self.destroy_a_group: 2,
            self.flush_scripts: 1,
            self.kill_the_server: 1,
            self.stop_the_server: 1,
        }

    async def run(self, without: tuple[str, ...] = ()) -> None:
        weights = {deed: n for deed, n in self._weights.items() if deed.__name__ not in without}
        while True:
            await asyncio.sleep(self._rng.uniform(0, 0.08))
            deed = self._rng.choices(list(weights), list(weights.values()))[0]
            self.done[deed.__name__] += 1
            await deed()

    async def cancel_a_task(self) -> None:
        worker = self._rng.choice(self._workers)
        for _ in range(self._rng.randint(0, 30)):
            await asyncio.sleep(0)  # at any await
        if (shift := getattr(worker, "shift", None)) is not None:
            shift.cancel()

    async def pause_a_worker(self) -> None:
        scripts = self._rng.choice(self._workers).scripts
        scripts.running.clear()
        await asyncio.sleep(2.2 * LEASE_MS / 1000)
        scripts.running.set()

    async def destroy_a_group(self) -> None:
        flow = Flow(self._rng.choice(VFMS), self._rng.choice(CLASSES))
        if await self._bench.redis.exists(self._bench.keys.queue(flow)):
            await self._bench.redis.xgroup_destroy(self._bench.keys.queue(flow), "w")

    async def flush_scripts(self) -> None:
        await self._bench.redis.script_flush()

    async def kill_the_server(self) -> None:
        await restart(self._server, self._bench.redis)
        await self._bench.redis.config_set("appendfsync", "always")

    async def stop_the_server(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        await asyncio.sleep(self._rng.choice([0.5, 2.2]) * LEASE_MS / 1000)
        os.kill(self._server.pid, signal.SIGCONT)


@asynccontextmanager
async def background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run beside the block; a crash of any of them ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(w) for w in work]
        yield tasks
        for task in tasks:
            task.cancel()


# --- what must hold ---------------------------------------------------------------------------------------------------


async def quiet(bench: Bench) -> bool:
    """Nothing waits, nothing is pending, nothing is given back, and no dead worker is left to be taken over."""
    for vfm in VFMS:
        for cls in CLASSES:
            if await bench.depth(vfm, cls) or (await bench.depth(vfm, cls) and await bench.pending(vfm, cls)):
                return False
    leases = await bench.redis.zcard(bench.keys.leases)
    ready = [await bench.ready(cls) for cls in CLASSES]
    return leases <= 3 and not any(ready) and not await bench.back()


async def check(bench: Bench, ledger: Ledger) -> Counter[str]:
    """The promises. Returns how the jobs ended."""
    jobs = list(ledger.waiting)
    raw = await bench.redis.mget([bench.keys.result(j) for j in jobs])
    assert [j for j, r in zip(jobs, raw, strict=True) if r is None] == [], "lost"
    ends = {j: decode_reply(r) for j, r in zip(jobs, raw, strict=True)}

    inboxes = {inbox for waiting in ledger.waiting.values() for inbox in waiting}
    mail = {inbox: Counter(m.job for m in await bench.mail(inbox)) for inbox in inboxes}
    assert {n for seen in mail.values() for n in seen.values()} <= {1}, "answered twice"
    unheard = [j for j, inbox in ledger.owner.items() if mail[inbox][j] != 1]
    assert unheard == [], "stored, but not told"

    for vfm in VFMS:
        for _, letter in await bench.redis.xrange(bench.keys.dead(vfm)):
            assert letter[b"d"] == POISON, "blamed wrongly"
    poisoned = {j for j, end in ends.items() if end.error and end.error.code == "poisoned"}
    assert poisoned <= ledger.poison
    assert all(ends[j].error for j in ledger.poison)
    assert await keys_without_ttl(bench.redis) == []
    return Counter(end.error.code if end.error else "ok" for end in ends.values())


# --- the attack -------------------------------------------------------------------------------------------------------


async def test_attack(seed: int, crashable: tuple[EmbeddedServer, Bench], request: pytest.FixtureRequest) -> None:
    rounds = 1 if request.config.getoption("--attack-seed") is not None else ROUNDS
    seconds = request.config.getoption("--attack-seconds") / rounds
    rng, ledger = random.Random(seed), Ledger()
    server, bench = crashable
    for n, vfm in enumerate(VFMS):
        await bench.serve(vfm, weight=1 + n % 4, cap=200)

    async with CuttingProxy(server.port, rng, rate=0.02) as proxy:
        workers = [Worker(f"w{n}", proxy.url, rng) for n in range(3)]
        clients = [Client(f"client{n}", proxy.url, VFMS, ledger, rng) for n in range(4)]
        chaos = Chaos(server, bench, workers, rng)
        async with background(*(w.run() for w in workers)):
            async with background(*(c.run() for c in clients)) as sending:
                async with background(chaos.run(), poison(bench, ledger, seconds)):
                    await asyncio.sleep(seconds)
                await recovered(server, bench, workers)
                proxy.rate = 0
                for client in clients:
                    client.stopped = True
                await asyncio.wait(sending)
            await until(lambda: quiet(bench), timeout_s=20)
        ends = await check(bench, ledger)
    print(
        f"\nseed {seed}: {dict(ends)}; {dict(chaos.done)}; cuts {proxy.cuts}; "
        f"{sum(w.lives for w in workers)} lives, {sum(len(w.served) for w in workers)} served"
    )


async def poison(bench: Bench, ledger: Ledger, seconds: float) -> None:
    """Now and then a job that kills whoever runs it."""
    while True:
        bad = NewJob(Flow("v0", INTERACTIVE), POISON, 1, 600_000)
        ledger.poison.add(bad.job)
        ledger.waiting[bad.job].add("client0")
        await until(lambda bad=bad: accepted(bench, bad), timeout_s=10)
        ledger.owner[bad.job] = "client0"
        await asyncio.sleep(max(2.0, seconds / 4))


async def accepted(bench: Bench, sent: NewJob) -> bool:
    try:
        return (await bench.enqueue(sent, inbox="client0"))[0] in ("new", "dup", "done")
    except Exception:  # the server is away
        return False


async def recovered(server: EmbeddedServer, bench: Bench, workers: list[Worker]) -> None:
    """Whatever chaos was in the middle of."""
    if server._process is None:
        server.start()
    os.kill(server.pid, signal.SIGCONT)
    for worker in workers:
        worker.scripts.running.set()


async def test_shares_follow_weights_under_attack(crashable: tuple[EmbeddedServer, Bench]) -> None:
    """Lost replies, cancelled claims, paused workers: jobs go back and forth, and yet weight decides who is served."""
    server, bench = crashable
    rng = random.Random(7)
    weights = {"v0": 1, "v1": 2, "v2": 5}
    jobs = [job(vfm, timeout_ms=600_000) for vfm in weights for _ in range(900)]
    for vfm, weight in weights.items():
        await bench.serve(vfm, weight=weight)
    await bench.enqueue(*jobs)
    async with CuttingProxy(server.port, rng, rate=0.03) as proxy:
        workers = [Worker(f"w{n}", proxy.url, rng, room=8) for n in range(3)]
        chaos = Chaos(server, bench, workers, rng)
        gentle = chaos.run(without=("destroy_a_group", "kill_the_server", "stop_the_server"))

        async def enough() -> bool:
            return len(await bench.mail()) >= 800

        async with background(*(w.run() for w in workers), gentle):
            await until(enough, timeout_s=60)
    sent = {j.job: j.flow.vfm for j in jobs}
    served = Counter(sent[m.job] for m in await bench.mail())
    for vfm, weight in weights.items():
        assert served[vfm] / served.total() == pytest.approx(weight / 8, rel=0.2), served
