"""A worker and a backlog, with an engine that does nothing: no job may wait for a timer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.noop import BACKBONE, NoopEngine, NoopJob
from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Features
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import CLASSES, Request
from fmplex_worker.host import intake
from fmplex_worker.host.service import Worker
from fmplex_worker.protocol import Prepared

DEADLINE_S = 60


class LongTexts(NoopEngine):
    """Every text turns out to be longer than the whole window."""

    def prepare(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        return [NoopJob(digest, units=50_000) for digest, _ in batch]


@asynccontextmanager
async def serving(engine: NoopEngine, place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[QueueClient]:
    monkeypatch.setattr(intake, "_IDLE_S", 3600.0)  # whoever sleeps without reason sleeps for ever
    with EmbeddedServer() as server:
        store = ArtifactStore(str(place))
        worker = Worker(server.url, BackboneSpec(name=BACKBONE, model="none"), WorkerSpec(), engine, store)
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.ready.wait(), DEADLINE_S)
        session = QueueClient.connect(server.url)
        spec = VfmSpec(name="a", backbone=BACKBONE, head=Features())
        await Deployer(session.registry, store).deploy(bare(spec))
        yield session
        await session.close()
        worker.stop()
        await asyncio.wait_for(running, DEADLINE_S)


@pytest.mark.parametrize("cls", CLASSES)
async def test_a_backlog_of_one_vfm_is_worked_off_without_pauses(
    cls: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(NoopEngine(), tmp_path, monkeypatch) as session:
        pending = [p for _ in range(2) for p in await session.submit("a", ["text"] * 2000, cls=cls)]
        async with asyncio.timeout(DEADLINE_S):
            replies = [await p.result() for p in pending]
    assert all(reply.error is None for reply in replies)


async def test_texts_longer_than_the_window_are_served_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(LongTexts(), tmp_path, monkeypatch) as session:
        pending = await session.submit("a", ["text"] * 300)
        async with asyncio.timeout(DEADLINE_S):
            replies = [await p.result() for p in pending]
    assert all(reply.error is None for reply in replies)
