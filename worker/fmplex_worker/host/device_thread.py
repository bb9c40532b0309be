"""The thread on which an engine runs its passes. It lives as long as the process: a worker that begins again under a new lease
must not step while the old one's last pass runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from fmplex_worker.protocol import Engine, Outcome, Prepared, Work

T = TypeVar("T")


class DeviceThread:
    """An engine, and the executor of one thread that is its device's."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self._engine = engine
        self._executor = executor

    def step(self, work: Sequence[Work]) -> asyncio.Future[Outcome]:
        """Run a pass behind those that are under way; see `Engine.step`."""
        return asyncio.get_running_loop().run_in_executor(self._executor, self._engine.step, work)

    def lend(self, steps: Iterator[T]) -> asyncio.Future[list[T]]:
        """Run something else to its end, step by step, behind the passes that are under way; the outcome is what the steps
        gave."""
        return asyncio.get_running_loop().run_in_executor(self._executor, list, steps)

    def drop(self, prepared: Prepared) -> None:
        """Give back what a job holds, behind the pass that may run yet; see `Engine.drop`."""
        self._executor.submit(self._engine.drop, prepared)
