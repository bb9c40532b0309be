"""What races in `test_life_races`: owners who change their vFMs, jobs on all of them, and a worker that comes and goes."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client, Conflict, UnknownVfm, VfmInfo
from fmplex_broker.errors import VfmClosed
from fmplex_broker.packages.package import Package
from fmplex_broker.specs.versions import artifact_of
from fmplex_broker.streams.queue_client import QueueClient
from fmplex_broker.wire.messages import Reply
from tests.chaos.conftest import TEXT, Crew
from tests.support.outputs import difference
from tests.support.waiting import until, wait_until

NOT_THERE = (UnknownVfm, VfmClosed)


@dataclass
class Wanted:
    """What a vFM serves, as its last successful change said; None: there is none."""

    version: str | None = None
    weight: float = 1.0
    past: list[str] = field(default_factory=list)


class Owner(threading.Thread):
    """Changes its vFMs at random, and knows after each change what must be. `shared` ones are changed by everybody."""

    def __init__(
        self, seed: int, http: str, redis: str, packages: dict[str, list[Package]], shared: dict[str, list[Package]]
    ) -> None:
        super().__init__(name=f"owner-{seed}")
        self._random = random.Random(seed)
        self._urls = http, redis
        self._packages, self._shared = packages, shared
        self._over = threading.Event()
        self.wanted = {name: Wanted() for name in packages}
        self.did: Counter[str] = Counter()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with Client(self._urls[0], retries=0) as client, Client(self._urls[1], retries=0) as direct:
                while not self._over.is_set():
                    if self._shared and self._random.random() < 0.25:
                        self._fight(client, self._random.choice(list(self._shared)))
                    else:
                        self._act(client, direct, self._random.choice(list(self._packages)))
        except BaseException as e:
            self.error = e

    def finish(self) -> None:
        self._over.set()
        self.join(120)
        assert not self.is_alive(), "a change never ended"
        if self.error is not None:
            raise self.error

    def _act(self, client: Client, direct: Client, name: str) -> None:
        now, package = self.wanted[name], self._random.choice(self._packages[name])
        action = self._random.choice(("deploy", "update", "update", "roll back", "weigh", "remove"))
        self.did[action] += 1
        if action == "deploy" and now.version is not None:
            with pytest.raises(Conflict, match="already a vFM"):
                client.vfms.deploy(package)
        elif action == "deploy":
            self._serves(name, client.vfms.deploy(package), package.digest)
            now.weight = 1.0
        elif now.version is None:
            with pytest.raises(UnknownVfm):
                client.infer(name, TEXT)
        elif action == "update":
            self._serves(name, client.vfms.update(name, package), package.digest)
        elif action == "roll back" and now.past:
            self._serves(name, client.vfms.roll_back(name), artifact_of(now.past[0]))
        elif action == "weigh":
            now.weight = self._random.randint(1, 9)
            assert client.vfms.update(name, weight=now.weight).version == now.version
        elif action == "remove":
            client.vfms.remove(name)
            self.wanted[name] = Wanted()
            for asking in (client, direct):
                with pytest.raises(UnknownVfm):
                    asking.enqueue(name, TEXT).result(timeout=60)

    def _serves(self, name: str, vfm: VfmInfo, artifact: str) -> None:
        """From the answer on, this and nothing else serves."""
        now, version = self.wanted[name], vfm.version
        assert version is not None
        assert (vfm.status, artifact_of(version), vfm.error) == ("serving", artifact, None)
        if now.version not in (version, None):
            now.past = [now.version, *(v for v in now.past if v not in (version, now.version))]
        now.version = version
        assert [p.version for p in vfm.past] == now.past

    def _fight(self, client: Client, name: str) -> None:
        """Somebody else may have been faster, but nothing worse may happen."""
        package = self._random.choice(self._shared[name])
        try:
            match self._random.randrange(4):
                case 0:
                    client.vfms.deploy(package)
                case 1:
                    client.vfms.update(name, package)
                case 2:
                    client.vfms.update(name, weight=self._random.randint(1, 9))
                case 3:
                    client.vfms.remove(name)
            self.did["won"] += 1
        except (Conflict, *NOT_THERE):
            self.did["lost"] += 1


class Jobs:
    """A stream of jobs to each vFM, straight to the broker, from one client: every answer is kept."""

    def __init__(self, session: QueueClient, names: list[str]) -> None:
        self._session = session
        self._names = names
        self._over = asyncio.Event()
        self.taken = 0
        self.refused = 0
        self.answered: list[tuple[str, Reply]] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._ask(name))

    def finish(self) -> None:
        self._over.set()

    async def _ask(self, name: str) -> None:
        while not self._over.is_set():
            try:
                pending = await self._session.submit(name, [TEXT] * 4, timeout_ms=120_000)
            except NOT_THERE:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            self.taken += len(pending)
            async with asyncio.timeout(90):
                self.answered += [(name, await p.result()) for p in pending]

    def check(self, outputs: dict[str, Any], always: dict[str, str]) -> None:
        """Every answer is what its version gives; `always` there: vFM -> version. `outputs`: by version."""
        assert len(self.answered) == self.taken, "every job that was taken is answered"
        wrong = []
        for name, reply in self.answered:
            if reply.error is not None:
                if name in always or not isinstance(reply.error, VfmClosed):
                    wrong.append(f"{name}: {type(reply.error).__name__}: {reply.error}")
            elif name in always and reply.version != always[name]:
                wrong.append(f"{name}: version {reply.version}")
            elif (off := difference(reply.output, outputs[artifact_of(reply.version)])) > 1e-5:
                wrong.append(f"{name}: version {reply.version} is off by {off}")
        assert wrong == []


async def come_and_go(crew: Crew, dice: random.Random, over: asyncio.Event) -> Counter[str]:
    """One more worker joins, works a while, and ends in one of two ways; again and again."""
    ways: Counter[str] = Counter()
    while not over.is_set():
        name = crew.add()
        await until(lambda name=name: crew.serves(name), "the worker serves")  # type: ignore[misc]
        await asyncio.sleep(dice.uniform(0.2, 1.5))
        way = dice.choice((signal.SIGTERM, signal.SIGKILL)) if ways else signal.SIGKILL
        process = crew.processes()[name]
        process.send_signal(way)
        await asyncio.to_thread(process.wait, 60)
        ways[way.name] += 1
    return ways


def references(url: str, folder: Path, packages: list[Package]) -> dict[str, Any]:
    """What each version gives when nothing else happens."""
    outputs: dict[str, Any] = {}
    with Client(url) as client:
        for package in packages:
            if package.digest not in outputs:
                client.vfms.deploy(package)
                outputs[package.digest] = client.infer(package.spec.name, TEXT).output
                client.vfms.remove(package.spec.name)
    return outputs


def settled(client: Client, name: str, patience_s: float = 30.0) -> VfmInfo | None:
    """The vFM once nothing is on offer any more; None where there is none."""

    def look() -> Any:
        try:
            found = client.vfms.show(name)
        except UnknownVfm:
            return "gone"
        return found if found.candidate is None and found.status != "draining" else None

    found = wait_until(look, f"{name} has settled", patience_s)
    return None if found == "gone" else found
