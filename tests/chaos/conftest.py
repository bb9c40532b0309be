"""A fleet with short leases and two workers, which every test finds whole, whatever the one before did to it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client, Conflict
from fmplex.local import LocalFleet
from fmplex_broker.streams.fleet import read_fleet
from fmplex_broker.streams.queue_client import Pending, QueueClient
from fmplex_broker.wire.messages import Reply
from fmplex_broker.wire.stats import WorkerStats
from tests.support.broker import Broker
from tests.support.fleets import worker_ids, write_minilm_fleet
from tests.support.packages import write_package
from tests.support.waiting import PATIENCE_S, until, wait_until

LEASE_S = 0.8
ROOM = {"max_pending": 100_000}
CLASSES = {"kind": "classification", "labels": ["a", "b", "c"]}
VFMS: dict[str, dict[str, Any]] = {
    "light": {"head": CLASSES, "rank": 4, "seed": 1, "weight": 1.0},
    "heavy": {"head": CLASSES, "rank": 4, "seed": 2, "weight": 4.0},
    "stars": {"head": {"kind": "regression"}, "rank": 8, "seed": 3},
    "plain": {"head": {"kind": "regression"}, "seed": 4},
}
TEXT = "a dozen of words so that every text has the same number"


class Crew:
    """The workers of the fleet: counts them, adds some, makes sure that two are there."""

    def __init__(self, fleet: LocalFleet, broker: Broker) -> None:
        self._fleet = fleet
        self._broker = broker
        self._numbers = count(10)

    def processes(self) -> dict[str, subprocess.Popen[bytes]]:
        """The running ones, by name."""
        return {n: p for n, p in self._fleet.processes.items() if n != "gateway" and p.poll() is None}

    def any(self) -> tuple[str, subprocess.Popen[bytes]]:
        return next(iter(self.processes().items()))

    def add(self) -> str:
        name = f"worker-{next(self._numbers)}"
        self._fleet.start_worker(name)
        return name

    def log(self, name: str) -> str:
        return (self._fleet.data / f"{name}.log").read_text(errors="replace")

    def ids(self, name: str) -> list[str]:
        """The ids under which a process has served, oldest first."""
        return worker_ids(self.log(name))

    def serves(self, name: str) -> bool:
        return bool(self.ids(name)) and self.ids(name)[-1] in self._broker.workers()

    def restore(self) -> None:
        """Two workers that serve, and no lease but theirs."""
        self._fleet.processes = {n: p for n, p in self._fleet.processes.items() if p.poll() is None}
        while len(self.processes()) < 2:
            self.add()
        wait_until(self._whole, "two workers serve", 2 * PATIENCE_S)

    def _whole(self) -> bool:
        assert not self._fleet.dead(), {name: self._fleet.log(name) for name in self._fleet.dead()}
        running = self.processes()
        return all(self.serves(name) for name in running) and len(self._broker.workers()) == len(running)


class Load:
    """Jobs of one client, straight to the broker: who answered, in which order, and how often."""

    def __init__(self, session: QueueClient, broker: Broker) -> None:
        self.session = session
        self._broker = broker
        self.answered: list[tuple[float, str, Reply]] = []  # when, vFM, reply
        self._jobs: list[str] = []
        self._waiting: list[asyncio.Task[None]] = []

    async def send(self, vfm: str, number: int, at_once: int = 500) -> None:
        for start in range(0, number, at_once):
            texts = [TEXT] * min(at_once, number - start)
            pending = await self.session.submit(vfm, texts, timeout_ms=600_000)
            self._jobs += [p.job for p in pending]
            self._waiting += [asyncio.create_task(self._wait(vfm, p)) for p in pending]

    async def send_to_all(self, number: int) -> None:
        """To every vFM, a little to each in turn."""
        for _ in range(0, number, 25):
            await asyncio.gather(*(self.send(vfm, 25) for vfm in VFMS))

    async def _wait(self, vfm: str, pending: Pending) -> None:
        reply = await pending.result()
        self.answered.append((time.monotonic(), vfm, reply))

    @property
    def sent(self) -> int:
        return len(self._jobs)

    def workers(self, since: int = 0) -> Counter[str]:
        """How many jobs each worker has answered."""
        return Counter(reply.worker for _, _, reply in self.answered[since:])

    async def stats(self) -> dict[str, WorkerStats]:
        """What each worker says of itself, by id."""
        return {w.worker: w for w in (await read_fleet(self.session.redis, self.session.registry)).workers}

    async def reaches(self, number: int) -> None:
        """Until that many jobs are answered."""
        await until(lambda: len(self.answered) >= number, f"{number} of {self.sent} jobs are answered")

    async def whole(self) -> None:
        """Every job is answered, without an error, exactly once, and alike for alike; nothing is left in the broker."""
        await self.reaches(self.sent)
        await asyncio.gather(*self._waiting)
        assert [str(reply.error) for _, _, reply in self.answered if reply.error] == []
        assert self._broker.replies(self.session._id) == self.sent, "a second visible reply"
        assert {vfm: self._broker.depth(vfm) for vfm in VFMS} == dict.fromkeys(VFMS, 0)
        self._alike()

    def _alike(self) -> None:
        first: dict[str, list[float]] = {}
        for _, vfm, reply in self.answered:
            numbers = list(reply.output["scores"].values()) if "scores" in reply.output else [reply.output["value"]]
            assert numbers == pytest.approx(first.setdefault(vfm, numbers), abs=1e-5), "the same text, another answer"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="session")
def started(place: Path) -> Iterator[tuple[LocalFleet, Broker]]:
    config = write_minilm_fleet(place, worker={"lease_ms": round(LEASE_S * 1000)}, pass_units=256)
    for name, parts in VFMS.items():
        write_package(place / "vfms" / name, limits=ROOM, **parts)
    with LocalFleet(config, workers=2, port=0, data=place / "data") as fleet:
        broker = Broker(fleet.broker_url)
        yield fleet, broker
        broker.close()


@pytest.fixture(scope="session")
def crew(started: tuple[LocalFleet, Broker]) -> Crew:
    return Crew(*started)


@pytest.fixture
def broker(started: tuple[LocalFleet, Broker]) -> Broker:
    return started[1]


@pytest.fixture
def fleet(started: tuple[LocalFleet, Broker], crew: Crew, place: Path) -> LocalFleet:
    """Two workers that serve, and all the vFMs."""
    crew.restore()
    fleet = started[0]
    with Client(fleet.gateway_url, retries=5) as client:
        for name in VFMS:
            with suppress(Conflict):
                client.vfms.deploy(place / "vfms" / name)
    return fleet


@pytest.fixture
async def load(fleet: LocalFleet, broker: Broker) -> AsyncIterator[Load]:
    session = QueueClient.connect(fleet.broker_url)
    yield Load(session, broker)
    await session.close()
