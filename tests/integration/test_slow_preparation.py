"""A worker whose vFMs take long to prepare, raise, or are drained in the middle of it: who waits, and who is to blame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fmplex_broker.errors import JobFailed
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import Pending, QueueClient
from fmplex_broker.wire.stats import by_vfm
from fmplex_worker.host.service import Worker
from tests.support.acting import NAME, ActingEngine
from tests.support.waiting import until

DEADLINE_S = 60
VFMS = ("sloth", "swift", "other")


class Site:
    """A broker, its vFMs, and workers in this process, one after the other."""

    def __init__(self, server: EmbeddedServer, store: ArtifactStore, session: QueueClient) -> None:
        self.server, self.store, self.session = server, store, session

    @asynccontextmanager
    async def worker(self, engine: ActingEngine, *, dies: bool = False, **spec: float) -> AsyncIterator[Worker]:
        """Run a worker, until it is told to drain, or `dies`: for the broker it is silent from one moment to the next."""
        backbone = BackboneSpec(name=NAME, model="none")
        worker = Worker(self.server.url, backbone, WorkerSpec(**spec), engine, self.store)
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        yield worker
        if dies:
            running.cancel()
        worker.stop()
        await asyncio.wait({running}, timeout=DEADLINE_S)
        assert running.cancelled() if dies else running.exception() is None

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
            used = by_vfm(view.workers)
            return "sloth" in used and used["sloth"].charged_s > 3.5 and used["swift"].charged_s < 1

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
        async with site.worker(engine, dies=engine is engines[-2], drain_s=0.1, lease_ms=400):
            assert await asyncio.to_thread(engine.stepping.wait, DEADLINE_S)
    async with site.worker(engines[-1], lease_ms=400):
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
