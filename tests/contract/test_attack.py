"""The protocol under attack: everything that can go wrong goes wrong, at random, all the time.

Three workers, twenty vFMs, four clients, on a real server behind a proxy that cuts connections before, after and late. Each
claim is in the one order or the other, and without some vFMs now and then.
Meanwhile workers' tasks are cancelled at any await, workers are paused beyond their lease, some jobs kill whoever runs them,
the server is killed and started again or stopped for longer than a lease, and consumer groups are destroyed. At the end

- nothing is lost: every job that was accepted has a result;
- nothing is answered twice: no inbox has two replies for one job, and whoever was promised one has it;
- nothing is told of a job after its reply;
- nothing is counted that is not there: the bytes that wait are none;
- nothing is stuck: no entry waits, is pending, or is listed as given back;
- nobody is blamed wrongly: dead letters are poison, and poison only.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from redis.exceptions import ResponseError

from fmplex_broker.errors import BrokerUnavailable
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.producer import NewJob
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, Flow, decode_reply
from tests.contract.harness import Bench, Mail, connected, job
from tests.contract.proxy import CuttingProxy
from tests.contract.swarm import LEASE_MS, POISON, Accounts, Client, Worker
from tests.support.broker import keys_without_ttl
from tests.support.waiting import until_soon

ROUND_S = 5.0
VFMS = [f"v{n}" for n in range(20)]
FLOWS = [Flow(vfm, cls) for vfm in VFMS for cls in CLASSES]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Several short rounds find more than one long one. `--attack-seed` repeats one of them."""
    if "seed" in metafunc.fixturenames:
        given = metafunc.config.getoption("--attack-seed")
        rounds = max(1, round(metafunc.config.getoption("--attack-seconds") / ROUND_S))
        seeds = [given] if given is not None else [random.SystemRandom().randrange(10**6) for _ in range(rounds)]
        metafunc.parametrize("seed", seeds, ids=[f"seed{s}" for s in seeds])


class Chaos:
    """Does one bad thing after another, in three strands at once."""

    def __init__(self, server: EmbeddedServer, bench: Bench, workers: list[Worker], rng: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._server = server
        self._bench = bench
        self._workers = workers
        self._rng = rng

    async def at_workers(self) -> None:
        await asyncio.gather(
            self._strand(0.05, self.cancel_a_task),
            self._strand(0.8, self.pause_a_worker),
        )

    async def at_the_server(self) -> None:
        deeds = [self.kill_the_server, self.stop_the_server, self.destroy_a_group, self.flush_scripts]
        await self._strand(0.4, *deeds)

    async def _strand(self, every_s: float, *deeds: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._rng.uniform(0, 2 * every_s))
            deed = self._rng.choice(deeds)
            self.done[deed.__name__] += 1
            await deed()

    async def cancel_a_task(self) -> None:
        worker = self._rng.choice(self._workers)
        for _ in range(self._rng.randint(0, 30)):
            await asyncio.sleep(0)  # at any await
        if worker.shift is not None:
            worker.shift.cancel()

    async def pause_a_worker(self) -> None:
        running = self._rng.choice(self._workers).running
        running.clear()
        try:
            await asyncio.sleep(2.2 * LEASE_MS / 1000)
        finally:
            running.set()

    async def destroy_a_group(self) -> None:
        """Of a flow with work, if there is one: what was pending is forgotten, and must be found again."""
        for flow in self._rng.sample(FLOWS, len(FLOWS)):
            if await self._bench.redis.xlen(self._bench.keys.queue(flow)):
                await self._bench.redis.xgroup_destroy(self._bench.keys.queue(flow), "w")
                return

    async def flush_scripts(self) -> None:
        await self._bench.redis.script_flush()

    async def kill_the_server(self) -> None:
        self._server.kill()
        try:
            await asyncio.sleep(self._rng.choice([0, 0, 1.2]) * LEASE_MS / 1000)
        finally:
            self._server.start()
            await connected(self._bench.redis)
        await self._bench.redis.config_set("appendfsync", "always")

    async def stop_the_server(self) -> None:
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.choice([0.5, 2.2]) * LEASE_MS / 1000)
        finally:
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
    """Nothing waits, nothing is given back, no flow is listed as ready, and no dead worker is left to be taken over."""
    depths = [await bench.depth(*flow) for flow in FLOWS]
    ready = [await bench.ready(cls) for cls in CLASSES]
    return (
        not any(depths)
        and not any(ready)
        and not await bench.back()
        and await bench.redis.zcard(bench.keys.leases) <= 3
    )


async def check(bench: Bench, ledger: Accounts) -> Counter[str]:
    """The promises. Returns how the jobs ended."""
    jobs = list(ledger.promised)
    raw = await bench.redis.mget([bench.keys.result(j) for j in jobs])
    assert [j for j, r in zip(jobs, raw, strict=True) if r is None] == [], "lost"
    ends = {j: decode_reply(r) for j, r in zip(jobs, raw, strict=True)}

    inboxes = {inbox for waiting in ledger.promised.values() for inbox in waiting}
    mail = {}
    for inbox in inboxes:
        came = await bench.mail(inbox)
        mail[inbox] = Counter(m.job for m in came if m.chunk is None)
        assert told_too_late(came) == set(), "told of after its reply"
    assert {n for seen in mail.values() for n in seen.values()} <= {1}, "answered twice"
    unheard = [(j, inbox) for j, waiting in ledger.promised.items() for inbox in waiting if not mail[inbox][j]]
    assert unheard == [], "stored, but not told"

    for flow in FLOWS:
        with suppress(ResponseError):  # a flow that never had a job has no stream
            assert await bench.pending(*flow) == {}, "pending for ever"
    for vfm in VFMS:
        for _, letter in await bench.redis.xrange(f"{bench.keys.prefix}dead:{vfm}"):
            assert letter[b"d"] == POISON, "blamed wrongly"
    poisoned = {j for j, end in ends.items() if end.error and end.error.code == "poisoned"}
    assert poisoned <= ledger.poison
    assert all(ends[j].error for j in ledger.poison if j in ends), "poison that did no harm"
    assert [vfm for vfm in ["", *VFMS] if await bench.counted(vfm)] == [], "counted, but not there"
    assert not {name for name in await bench.names() if name.startswith("part:")}, "kept for nobody"
    assert await keys_without_ttl(bench.redis) == []
    return Counter(end.error.code if end.error else "ok" for end in ends.values())


def told_too_late(came: list[Mail]) -> set[str]:
    """Jobs of which there are chunks behind the reply."""
    late, ended = set(), set()
    for m in came:
        if m.chunk is None:
            ended.add(m.job)
        elif m.job in ended:
            late.add(m.job)
    return late


# --- the attack -------------------------------------------------------------------------------------------------------


async def test_attack(seed: int, crashable: tuple[EmbeddedServer, Bench]) -> None:
    rng, ledger = random.Random(seed), Accounts()
    server, bench = crashable
    for n, vfm in enumerate(VFMS):
        await bench.serve(vfm, weight=1 + n % 4, cap=200)

    async with CuttingProxy(server.port, rng, rate=0.02) as proxy:
        workers = [
            Worker(f"w{n}", proxy.url, rng, orders=("fair", "arrival"), shy=VFMS, talkative=True) for n in range(3)
        ]
        clients = [Client(f"client{n}", proxy.url, VFMS, ledger, rng) for n in range(4)]
        chaos = Chaos(server, bench, workers, rng)
        async with background(*(w.run() for w in workers)):
            async with background(*(c.run() for c in clients)) as sending:
                async with background(chaos.at_workers(), chaos.at_the_server(), poison(bench, ledger)):
                    await asyncio.sleep(ROUND_S)
                proxy.rate = 0
                for client in clients:
                    client.stopped = True
                await asyncio.wait(sending)
            for _ in range(3):
                await chaos.destroy_a_group()  # now no new job can make up for what it breaks
            await until_soon(lambda: quiet(bench), patience_s=20)
        ends = await check(bench, ledger)
    told = sum([m.chunk is not None for n in range(4) for m in await bench.mail(f"client{n}")])
    print(
        f"\nseed {seed}: {dict(ends)}; {dict(chaos.done)}; cuts {proxy.cuts}; "
        f"{sum(w.lives for w in workers)} lives, {sum(w.served for w in workers)} served; {told} told"
    )


async def poison(bench: Bench, ledger: Accounts) -> None:
    """Now and then a job that kills whoever runs it."""
    while True:
        bad = NewJob(Flow("v0", INTERACTIVE), POISON, 1, 600_000)
        ledger.poison.add(bad.job)
        await until_soon(lambda bad=bad: accepted(bench, bad), patience_s=10)
        ledger.took(bad.job, "new", "client0")
        await asyncio.sleep(ROUND_S / 3)


async def accepted(bench: Bench, sent: NewJob) -> bool:
    with suppress(BrokerUnavailable):
        return (await bench.enqueue(sent, inbox="client0"))[0] in ("new", "dup", "done")
    return False


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

        async def enough() -> bool:
            return bool(await bench.redis.xlen(bench.keys.inbox("client")) >= 800)

        async with background(*(w.run() for w in workers), chaos.at_workers()):
            await until_soon(enough, patience_s=60)
    sent = {j.job: j.flow.vfm for j in jobs}
    served = Counter(sent[m.job] for m in await bench.mail())
    for vfm, weight in weights.items():
        assert served[vfm] / served.total() == pytest.approx(weight / 8, rel=0.2), served
