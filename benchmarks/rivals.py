"""FMplex and three other ways to serve the same tasks, as real workers that take turns on one core.

Every way has the same broker, client, texts, tokenizer, packing and pass budget, and all its worker processes share one core
with one thread each (the device); broker and client have the other cores. Copies have the tasks' LoRAs merged.

ours            one worker, one backbone, the tasks' LoRAs beside it in common passes
processes       a worker with its own copy of the model per task
colocated       one process with all copies, one task a pass, first come first served
one_at_a_time   one process, one backbone, one task a pass, first come first served
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import psutil

from benchmarks.fleet import Workers, cores, deploy, fleet_file, open_client, pin
from benchmarks.models import Size, Tasks, texts
from fmplex import AsyncClient
from fmplex_broker.streams.connection import Scripts, open_redis
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.registry import Registry

_Measured = TypeVar("_Measured")
OURS = "ours"
RIVALS = ("processes", "colocated", "one_at_a_time")
WINDOW = 16  # passes' worth of jobs in hand: one task a pass must find enough of its own among them
WARM_UP = 0.2  # of the arrivals, at the beginning: queues are still filling
PLACES = "workers: one, shared; broker and client: the rest; all at niceness -15 where the system allows it"


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """One way to serve the tasks: its processes, and the name of each task's vFM."""

    name: str
    workers: Workers
    vfms: list[str]


class Ways:
    """Opens ways side by side and lets one at a time run."""

    def __init__(self, folder: Path, server: EmbeddedServer, client: AsyncClient, size: Size, tasks: int) -> None:
        self.client = client
        self.texts = texts(512)
        self.difference = 0.0  # the largest, of a score, between two ways
        self._folder = folder
        self._url = server.url
        self._redis = open_redis(server.url)
        self._registry = Registry(self._redis, Scripts(self._redis))
        self._size = size
        self._tasks = Tasks(folder, size, tasks)
        self._copies = self._tasks.merged_copies()
        *rest, self._device = cores()
        self._rest = rest or [self._device]
        pin(server.pid, self._rest)

    async def close(self) -> None:
        """Close the connection to the broker. The ways are stopped by their own contexts."""
        await self._redis.aclose()

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Way]:
        """Start a way, deploy every task, and freeze it. It is stopped at the end."""
        with Workers(self._folder, self._url) as workers:
            pin(psutil.Process().pid, [*self._rest, self._device])  # children inherit it: all may load on all cores
            backbones = self._start(name, workers)
            await workers.ready(self._registry)
            adapter = name in (OURS, "one_at_a_time")
            packages = [
                self._tasks.package(i, f"{name}-vfm-{i}", backbones[i % len(backbones)], adapter=adapter)
                for i in range(self._tasks.count)
            ]
            way = Way(name, workers, await deploy(self.client, packages))
            workers.pin([self._device])
            pin(psutil.Process().pid, self._rest)
            workers.freeze()
            yield way

    def _start(self, name: str, workers: Workers) -> list[str]:
        """Start the processes of a way. Returns the names of their backbones."""
        backbones = [f"{name}-{i}" for i in range(self._tasks.count)] if name == "processes" else [name]
        for backbone, model in zip(backbones, self._copies, strict=False):
            match name:
                case "ours":
                    workers.start(self._file(backbone, self._tasks.base))
                case "processes":
                    workers.start(self._file(backbone, model))
                case "colocated":
                    copies = map(str, self._copies)
                    workers.start(self._file(backbone, model), "benchmarks.onetask", "--copies", *copies)
                case _:
                    workers.start(self._file(backbone, self._tasks.another_base(backbone)), "benchmarks.onetask")
        return backbones

    def _file(self, backbone: str, model: Path) -> Path:
        return fleet_file(self._folder, backbone, model, pass_units=self._size.pass_units, window_passes=WINDOW)

    async def turn(self, way: Way, measure: Callable[[], Awaitable[_Measured]]) -> _Measured:
        """Measure a way while no other runs."""
        way.workers.thaw()
        await self._ask(way)  # its connections are awake again
        measured = await measure()
        way.workers.freeze()
        return measured

    async def compare(self, one: Way, other: Way) -> None:
        """Raise `RuntimeError` unless both serve the same thing: else their speeds say nothing."""
        answers = []
        for way in (one, other):
            way.workers.thaw()
            answers.append(await self._ask(way))
            way.workers.freeze()
        pairs = [(a[label], b[label]) for a, b in zip(*answers, strict=True) for label in a]
        self.difference = max(self.difference, *(abs(a - b) for a, b in pairs))
        if self.difference > 1e-4:
            raise RuntimeError(f"{other.name} answers something else: a score is off by {self.difference:.2g}")

    async def _ask(self, way: Way) -> list[dict[str, float]]:
        """Return the scores that every task gives to the same text."""
        return [(await self.client.infer(vfm, self.texts[0])).output["scores"] for vfm in way.vfms]


@asynccontextmanager
async def open_ways(size: Size, tasks: int) -> AsyncIterator[Ways]:
    """Open the ways' tasks on a broker of their own."""
    with TemporaryDirectory(prefix="fmplex-ways-") as place, EmbeddedServer() as server:
        folder = Path(place)
        async with open_client(server.url, folder) as client:
            ways = Ways(folder, server, client, size, tasks)
            try:
                yield ways
            finally:
                await ways.close()
