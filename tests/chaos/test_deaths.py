"""Processes that die in native code with a job or a version in hand: it costs so many deaths and no more, and nobody else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fmplex_broker.errors import NoWorker, PackageRejected, Poisoned
from fmplex_broker.packages.artifacts import ArtifactStore
from fmplex_broker.packages.package import bare
from fmplex_broker.specs.heads import Embedding, Features, Head
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.streams.deployer import Deployer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import QueueClient
from tests.support.acting import NAME
from tests.support.waiting import until

LEASE_MS = 800
DEADLINE_S = 120
MOST = 3


class Crew:
    """Worker processes, each of which is begun again when it has died, as `fmplex up` does; `deaths` counts that."""

    def __init__(self, url: str, artifacts: Path, workers: int) -> None:
        self._command = [sys.executable, "-m", "tests.support.acting", "--broker", url, "--artifacts", str(artifacts)]
        self._command += ["--lease-ms", str(LEASE_MS)]
        self._running = [self._start() for _ in range(workers)]
        self.deaths = 0

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    async def watch(self) -> None:
        while True:
            for i, process in enumerate(self._running):
                if process.poll() is not None:
                    self.deaths += 1
                    self._running[i] = self._start()
            await asyncio.sleep(0.05)

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()


class Site:
    def __init__(self, server: EmbeddedServer, place: Path, session: QueueClient, crew: Crew) -> None:
        self.server, self.place, self.session, self.crew = server, place, session, crew

    async def deploy(self, vfm: str, head: Head) -> None:
        deployer = Deployer(self.session.registry, ArtifactStore(str(self.place)))
        await deployer.deploy(bare(VfmSpec(name=vfm, backbone=NAME, head=head)))


@asynccontextmanager
async def running(place: Path, workers: int) -> AsyncIterator[Site]:
    with EmbeddedServer() as server:
        session = QueueClient.connect(server.url)
        crew = Crew(server.url, place, workers)
        watching = asyncio.create_task(crew.watch())
        try:

            async def serves() -> bool:
                return len(await session.registry.live_workers(NAME)) == workers

            await until(serves, "the workers serve")
            site = Site(server, place, session, crew)
            await site.deploy("a", Features())
            await site.deploy("b", Features())
            yield site
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            crew.end()
            await session.close()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("place", ["prepare", "step"])
async def test_a_job_that_kills_its_worker_is_put_aside_and_its_neighbours_are_answered(
    tmp_path: Path, place: str, workers: int
) -> None:
    async with running(tmp_path, workers) as site:
        texts = [f"{i}" for i in range(40)]
        good = await site.session.submit("a", texts[:20], timeout_ms=300_000)
        (poison,) = await site.session.submit("b", [f"{place}:abort"], timeout_ms=300_000)
        good += await site.session.submit("a", texts[20:], timeout_ms=300_000)
        async with asyncio.timeout(DEADLINE_S):
            replies = [await p.result() for p in good]
            verdict = await poison.result()
        assert [reply.output["text"] for reply in replies] == texts
        assert isinstance(verdict.error, Poisoned)
        assert site.crew.deaths == MOST, "one an attempt"
        for vfm in ("a", "b"):
            (more,) = await site.session.submit(vfm, ["more"], timeout_ms=300_000)
            assert (await more.result()).output == {"text": "more"}
        assert site.crew.deaths == MOST


async def test_poisons_of_several_vfms_cost_their_own_deaths_only(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as site:
        poisons = await site.session.submit("a", ["prepare:abort"], timeout_ms=600_000)
        poisons += await site.session.submit("b", ["prepare:abort too"], timeout_ms=600_000)
        good = await site.session.submit("a", [f"{i}" for i in range(30)], timeout_ms=600_000)
        async with asyncio.timeout(DEADLINE_S):
            verdicts = [await p.result() for p in poisons]
            replies = [await p.result() for p in good]
        assert all(isinstance(verdict.error, Poisoned) for verdict in verdicts)
        assert [reply.error for reply in replies] == [None] * 30
        assert site.crew.deaths <= 2 * MOST


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_offer_that_workers_die_of_is_rejected_by_name(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers) as site:
        with pytest.raises((PackageRejected, NoWorker)):  # there may be none for a moment
            await site.deploy("deadly", Embedding())  # not what the others have: it would be theirs

        async def rejected() -> bool:
            return (await site.session.registry.show("deadly")).status == "rejected"

        await until(rejected, "it is rejected")
        error = (await site.session.registry.show("deadly")).error
        assert error is not None
        assert error["code"] == "package_rejected"
        assert all(part in error["message"] for part in ("3 workers have died", "'deadly'"))
        died = site.crew.deaths
        assert died == MOST, "one at a time"

        async def serves() -> bool:
            return len(await site.session.registry.live_workers(NAME)) >= workers

        await until(serves, "all are back")
        (more,) = await site.session.submit("a", ["more"], timeout_ms=300_000)
        assert (await more.result()).output == {"text": "more"}
        assert site.crew.deaths == died, "and nobody tries it again"
