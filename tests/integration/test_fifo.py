"""A worker with `policy = "fifo"`: jobs run in the order in which they came, from the stream to the device."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from benchmarks.noop import BACKBONE, UNITS, NoopEngine, NoopJob
from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Request
from fmplex_worker.host.service import Worker
from fmplex_worker.protocol import Outcome, Prepared, Work

DEADLINE_S = 60
WEIGHTS = {"light": 1.0, "middle": 10.0, "heavy": 100.0}


@dataclass(frozen=True, slots=True)
class Named(NoopJob):
    text: str = ""


class Recorder(NoopEngine):
    """Keeps the order in which texts ran; nothing runs before `gate` opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Event()
        self.ran: list[str] = []

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        return [Named(digest, text=request.input) for digest, request in batch]

    def step(self, work: Sequence[Work]) -> Outcome:
        assert self.gate.wait(DEADLINE_S)
        self.ran += [job.text for job, _ in work if isinstance(job, Named)]
        return super().step(work)


def next_ms() -> None:
    """Jobs of different vFMs that came within one ms of the server's clock, which is ours, have no order."""
    now = time.time_ns() // 10**6
    while time.time_ns() // 10**6 == now:
        pass


async def test_jobs_run_in_the_order_in_which_they_came_whatever_the_weights(tmp_path: Path) -> None:
    engine, rng = Recorder(), random.Random(5)
    backbone = BackboneSpec(name=BACKBONE, model="none", pass_units=4 * UNITS)
    policy = WorkerSpec(policy="fifo", window_passes=2)  # it holds eight of the sixty jobs
    with EmbeddedServer() as server:
        store = ArtifactStore(str(tmp_path))
        worker = Worker(server.url, backbone, policy, engine, store)
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        session = QueueClient.connect(server.url)
        for vfm, weight in WEIGHTS.items():
            spec = VfmSpec(name=vfm, backbone=BACKBONE, head=Features(), weight=weight)
            await Deployer(session.registry, store).deploy(bare(spec))
        sent, pending = [f"text {n}" for n in range(60)], []
        for text in sent:
            next_ms()
            pending += await session.submit(rng.choice(list(WEIGHTS)), [text])
        engine.gate.set()
        async with asyncio.timeout(DEADLINE_S):
            for p in pending:
                assert (await p.result()).error is None
        await session.close()
        worker.stop()
        await asyncio.wait_for(running, DEADLINE_S)
    assert engine.ran == sent
