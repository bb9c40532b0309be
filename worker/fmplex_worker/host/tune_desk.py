"""What the tuning jobs of one life of a worker have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.streams.file_list import FileList
from fmplex_broker.streams.tune_owner import TuneOwner
from fmplex_broker.streams.tunes import Tunes
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.training_turn import TrainingTurn
from fmplex_worker.host.tune_memory import TuneMemory
from fmplex_worker.host.tune_publishing import Publisher
from fmplex_worker.host.tune_shelf import TuneShelf
from fmplex_worker.protocol import Engine

P = ParamSpec("P")
T = TypeVar("T")
MOST = 2  # tuning jobs in hand at a time


@dataclass(frozen=True, slots=True)
class TuneDesk:
    """Whom a tuning job calls on. `memory`: of the device, for all tuning jobs; `opening`: one is opened at a time; `stop`: set
    once the worker drains."""

    backbone: BackboneSpec
    engine: Engine
    turn: TrainingTurn
    blame: Blame
    owner: TuneOwner
    tunes: Tunes
    files: FileList
    shelf: TuneShelf
    publisher: Publisher
    threads: Executor
    memory: TuneMemory
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def setting_up(self, job: str) -> AsyncIterator[None]:
        """Set up one tuning job at a time; while no unit of another one runs, it alone is to blame for a death. Raises
        `LeaseLost`."""
        async with self.opening:
            await self.blame.open(job)
            try:
                yield
            finally:
                self.blame.opened()

    async def off_loop(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what takes its time on a thread of tuning's own."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: call(*args, **kwargs))
