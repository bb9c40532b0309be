"""A worker whose vFMs take long to prepare, raise, or are drained in the middle of it: who waits, and who is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fmplex_broker.errors import JobFailed, PackageRejected, Poisoned
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Embedding, Features
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import Pending, QueueClient
from fmplex_broker.wire.stats import by_flow
from fmplex_worker.host.service import Worker
from tests.support.acting import NAME, ActingEngine
from tests.support.waiting import until

DEADLINE_S = 60
VFMS = ("sloth", "swift", "other")


class Life:
    """A worker that runs."""

    def __init__(self, worker: Worker, running: asyncio.Task[None]) -> None:
        self._worker, self._running = worker, running

    def stop(self) -> None:
        """Be told to drain."""
        self._worker.stop()

    def die(self) -> None:
        """Be silent, for the broker, from one moment to the next."""
        self._running.cancel()


class Site:
    """A broker, its vFMs, and workers in this process, one after the other."""

    def __init__(self, server: EmbeddedServer, store: ArtifactStore, session: QueueClient) -> None:
        self.server, self.store, self.session = server, store, session

    @asynccontextmanager
    async def worker(self, engine: ActingEngine, **spec: float) -> AsyncIterator[Life]:
        """Run a worker, until it has died or is told to drain."""
        backbone = BackboneSpec(name=NAME, model="none")
        worker = Worker(self.server.url, backbone, WorkerSpec(**spec), engine, self.store)
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        yield Life(worker, running)
        worker.stop()
        await asyncio.wait({running}, timeout=DEADLINE_S)
        assert running.cancelled() or running.exception() is None

    async def nobody_is_blamed(self) -> bool:
        held = [key async for key in self.session.redis.scan_iter(f"{{{NAME}}}:held:*")]
        return not any([await self.session.redis.hget(key, "#run") for key in held])

    async def deploy(self) -> None:
        for vfm in VFMS:
            spec = VfmSpec(name=vfm, backbone=NAME, head=Features())
            await Deployer(self.session.registry, self.store).deploy(bare(spec))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with EmbeddedServer() as server:
        session = QueueClient.connect(server.url)
        yield Site(server, ArtifactStore(str(tmp_path)), session)
        await session.close()


async def outputs(pending: list[Pending]) -> list[object]:
    async with asyncio.timeout(DEADLINE_S):
        replies = [await p.result() for p in pending]
    return [reply.error or reply.output["text"] for reply in replies]


@pytest.mark.parametrize("honest", [True, False])
async def test_nobody_waits_for_a_vfm_that_is_slow_to_prepare(site: Site, honest: bool) -> None:
    """Three calls of two seconds each; a hundred of others, one after the other, are answered meanwhile. `honest`: the engine
    says of them that they are not quick, or finds out."""
    engine = ActingEngine(slow_s=2.0, honest=honest)
    async with site.worker(engine):
        await site.deploy()
        slow = await site.session.submit("sloth", [f"prepare:slow{i}" for i in range(3)])
        ended = [asyncio.create_task(p.result()) for p in slow]
        for i in range(100):
            pending = await site.session.submit(("swift", "other")[i % 2], [f"{i}"])
            assert await outputs(pending) == [f"{i}"]
        assert not ended[-1].done(), "it waits for itself"
        assert await outputs(slow) == [f"prepare:slow{i}" for i in range(3)]

        async def charged() -> bool:
            view = await read_fleet(site.session.redis, site.session.registry)
            used = {flow.vfm: stats.charged_s for flow, stats in by_flow(view.workers).items()}
            return used.get("sloth", 0) > 3.5 and used["swift"] < 1

        await until(charged, "it is charged for what it took", 10)
    await asyncio.gather(*ended)


@pytest.mark.parametrize("what", ["raise", "panic"])
async def test_what_raises_is_the_error_of_that_job_and_no_worker_ends(site: Site, what: str) -> None:
    async with site.worker(ActingEngine()):
        await site.deploy()
        texts = [f"prepare:{what}" if i % 5 == 2 else f"{i}" for i in range(50)]
        got = await outputs(await site.session.submit("swift", texts))
        for text, output in zip(texts, got, strict=True):
            if text.startswith("prepare"):
                assert isinstance(output, JobFailed)
                assert "as it was told" in output.message
            else:
                assert output == text


async def test_four_drains_and_one_death_do_not_put_an_innocent_job_aside(site: Site) -> None:
    """It runs each time when the worker has to leave. The workers' threads live on, as they do in a process that is about to
    end."""
    engines = [ActingEngine() for _ in range(6)]
    async with site.worker(engines[0], drain_s=0.1):
        await site.deploy()
        for engine in engines[:-1]:
            engine.gate.clear()
        pending = await site.session.submit("swift", ["patient"])
        assert await asyncio.to_thread(engines[0].stepping.wait, DEADLINE_S)
    for engine in engines[1:-1]:
        async with site.worker(engine, drain_s=0.1, lease_ms=400) as life:
            assert await asyncio.to_thread(engine.stepping.wait, DEADLINE_S)
            if engine is engines[-2]:
                life.die()
    async with site.worker(engines[-1], lease_ms=400):
        assert await outputs(pending) == ["patient"]
    for engine in engines:
        engine.gate.set()


async def test_a_worker_that_is_killed_while_it_drains_has_not_died_of_its_jobs(site: Site) -> None:
    """Whoever told it to end was less patient than its `drain_s`, three times."""
    async with site.worker(ActingEngine()):
        await site.deploy()
    pending = await site.session.submit("swift", ["patient"])
    engines = [ActingEngine() for _ in range(3)]
    for engine in engines:
        engine.gate.clear()
        async with site.worker(engine, lease_ms=400) as life:
            assert await asyncio.to_thread(engine.stepping.wait, DEADLINE_S)
            life.stop()
            await until(site.nobody_is_blamed, "it drains")
            life.die()
    async with site.worker(ActingEngine(), lease_ms=400):
        assert await outputs(pending) == ["patient"]
    for engine in engines:
        engine.gate.set()


async def test_a_drain_while_jobs_are_being_prepared_gives_them_back(site: Site) -> None:
    engine = ActingEngine(slow_s=1.0)
    async with site.worker(engine):
        await site.deploy()
        pending = await site.session.submit("sloth", [f"prepare:slow{i}" for i in range(3)])
        pending += await site.session.submit("swift", ["x"])
        await pending[-1].result()
    async with site.worker(ActingEngine()):
        assert await outputs(pending) == [*(f"prepare:slow{i}" for i in range(3)), "x"]


@pytest.mark.parametrize("place", ["prepare", "step"])
async def test_a_job_that_kills_its_worker_is_put_aside_and_its_neighbours_are_answered(site: Site, place: str) -> None:
    """One worker after the other, each silent from the moment at which it has the job in hand."""
    async with site.worker(ActingEngine()):
        await site.deploy()
    good = await site.session.submit("swift", [f"{i}" for i in range(20)])
    (poison,) = await site.session.submit("sloth", [f"{place}:die"])
    good += await site.session.submit("other", [f"{i}" for i in range(20)])
    verdict = asyncio.create_task(poison.result())
    replies = asyncio.gather(*(asyncio.create_task(p.result()) for p in good))
    engines: list[ActingEngine] = []
    while not (verdict.done() and replies.done()):
        engines.append(ActingEngine())
        assert len(engines) <= 4, "three deaths are enough"
        async with site.worker(engines[-1], lease_ms=400) as life:
            await until(lambda: engines[-1].dying.is_set() or (verdict.done() and replies.done()), "something happens")
            if engines[-1].dying.is_set():
                life.die()
        engines[-1].dead.set()
    assert isinstance(verdict.result().error, Poisoned)
    assert [reply.error for reply in replies.result()] == [None] * 40
    assert sum(engine.dying.is_set() for engine in engines) == 3, "one an attempt"


async def test_an_offer_that_workers_die_of_is_rejected_by_name_and_others_are_served(site: Site) -> None:
    async with site.worker(ActingEngine()):
        await site.deploy()
    registry = site.session.registry
    spec = VfmSpec(name="dying", backbone=NAME, head=Embedding())  # not what the others have: it would be theirs
    deploying = asyncio.create_task(Deployer(registry, site.store).deploy(bare(spec)))
    engines: list[ActingEngine] = []
    while not deploying.done():
        engines.append(ActingEngine())
        assert len(engines) <= 4, "three deaths are enough"
        backbone = BackboneSpec(name=NAME, model="none")
        worker = Worker(site.server.url, backbone, WorkerSpec(lease_ms=400), engines[-1], site.store)
        running = asyncio.create_task(worker.run())
        await until(lambda: engines[-1].dying.is_set() or deploying.done(), "something happens")
        if engines[-1].dying.is_set():
            running.cancel()
        else:
            assert await outputs(await site.session.submit("swift", ["x"])) == ["x"]
            worker.stop()
        await asyncio.wait({running}, timeout=DEADLINE_S)
        engines[-1].dead.set()
    with pytest.raises(PackageRejected, match=r"3 workers have died while they loaded version .* of 'dying'"):
        await deploying
    assert [engine.dying.is_set() for engine in engines] == [True, True, True, False]
    assert (await registry.show("dying")).status == "rejected"
