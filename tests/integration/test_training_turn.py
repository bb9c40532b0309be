"""A worker that takes tuning jobs, with a real broker: units run between its passes, and everybody is told."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.noop import BACKBONE, UNITS, NoopEngine
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, TuningSpec, WorkerSpec
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.vfm import Slo, VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.stats import WorkerStats
from fmplex_worker.host import service
from fmplex_worker.host.life import Life
from fmplex_worker.host.service import Worker
from fmplex_worker.host.training_job import TrainingJob
from fmplex_worker.training import RunProgress, Unit
from tests.support.waiting import until

DEADLINE_S = 60


class Endless:
    """A training of units of 5 ms."""

    progress = RunProgress(0, 1)
    checkpoint_due = False

    def __init__(self) -> None:
        self.ran = 0

    def next(self) -> Unit:
        return Unit("loss", 7, 100.0, self._run)

    def _run(self) -> None:
        time.sleep(0.005)
        self.ran += 1

    def snapshot(self) -> Any: ...

    def package(self) -> dict[str, bytes]:
        return {}


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[Life]:
    """The lives of the workers of a test."""
    begun: list[Life] = []

    class Seen(Life):
        def __init__(self, *lasting: Any) -> None:
            super().__init__(*lasting)
            begun.append(self)

    monkeypatch.setattr(service, "Life", Seen)
    return begun


async def test_units_run_between_passes_and_none_once_the_worker_drains(
    tmp_path: Path, lives: list[Life], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Endless()
    spec = WorkerSpec(tuning=TuningSpec(enabled=True))
    with EmbeddedServer() as server:
        store = ArtifactStore(str(tmp_path))
        worker = Worker(
            server.url, BackboneSpec(name=BACKBONE, model="none", pass_units=4 * UNITS), spec, NoopEngine(), store
        )
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        session = QueueClient.connect(server.url)
        vfm = VfmSpec(name="a", backbone=BACKBONE, head=Features(), slo=Slo(latency_ms=200))
        await Deployer(session.registry, store).deploy(bare(vfm))
        turn = lives[-1].turn
        assert turn is not None
        await turn.add(job := TrainingJob("ftjob-1", "mine", 1.0, training))  # type: ignore[arg-type]
        await until(lambda: training.ran > 3)
        (held,) = [key async for key in session.redis.scan_iter(match="*held:*")]
        assert await session.redis.hget(held, "#tune") == b"ftjob-1"
        for n in range(10):
            (pending,) = await session.submit("a", [f"text {n}"])
            assert (await asyncio.wait_for(pending.result(), DEADLINE_S)).error is None
        ran = training.ran
        await until(lambda: training.ran > ran + 3)

        async def told() -> WorkerStats | None:
            (stats,) = (await read_fleet(session.redis, session.registry)).workers
            return stats if stats.training and stats.training.touched else None

        stats = await until(told)
        assert stats.training.jobs == 1
        assert stats.training.tokens["mine"] == 7 * stats.training.units["loss"] > 0
        passes, lent = lives[-1]._pass_loop, list[bool]()
        monkeypatch.setattr(passes, "stop", lambda stop=passes.stop: (lent.append(turn.wanted), stop()))
        worker.stop()
        await asyncio.wait_for(running, DEADLINE_S)
        ran = training.ran
        await session.close()
    assert training.ran == ran
    assert lent == [False], "from SIGTERM on, not only once its jobs are given back"
    assert job.error is None
