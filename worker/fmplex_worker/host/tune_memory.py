"""Who of the tuning jobs in hand has how much of the memory that is there for tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fmplex_broker.wire.stats import TrainingStats
from fmplex_worker.ledger import shared
from fmplex_worker.training import Training

_LOOK_S = 0.2  # a micro-batch ends without a word


class TuneMemory:
    """Shares `budget` bytes of the device between tuning jobs: each has what it needs at least, and of the rest an equal part, or
    all that the others do not want. Event loop only; `stats` are kept up to date."""

    def __init__(self, budget: int, stats: TrainingStats) -> None:
        self.budget = budget
        self._stats = stats
        self._held: dict[str, Training] = {}
        self._freed = asyncio.Event()

    async def admit(self, key: str, training: Training, say: Callable[[str], None]) -> None:
        """Wait until there is room for a training, which needs no more than `budget`, and limit it to its part. `say`: told once
        what it waits for."""
        told = False
        try:
            while not self._let_in(key, training):
                if not told and training.needs.least + self._others() > self.budget:
                    told = True
                    say(
                        f"Waiting for memory: it takes {training.needs.least:,} bytes at least, and of the {self.budget:,} of "
                        f"worker.tuning.bytes {self._others():,} are needed by other tuning jobs until one of them has ended"
                    )
                self._freed.clear()
                waiting = asyncio.ensure_future(self._freed.wait())
                await asyncio.wait({waiting}, timeout=_LOOK_S)
                waiting.cancel()
        finally:
            if key not in self._held:
                self._spread([*self._held.values()])  # what was to make room for it need not any more

    def release(self, key: str) -> None:
        """Give back what a training had, if it had any."""
        if self._held.pop(key, None) is not None:
            self._spread([*self._held.values()])
            self._freed.set()

    def _let_in(self, key: str, training: Training) -> bool:
        """Take a training in if there is room; if there is once the others have less, ask them to."""
        if training.needs.least + self._others() > self.budget:
            return False
        others = [*self._held.values()]
        part = self._spread([*others, training])[-1]
        if sum(other.holds for other in others) + part > self.budget:
            return False  # until their micro-batches have ended
        self._held[key] = training
        self._count()
        return True

    def _others(self) -> int:
        return sum(training.needs.least for training in self._held.values())

    def _spread(self, trainings: list[Training]) -> list[int]:
        """Limit trainings to their parts, and return these."""
        needs = [training.needs for training in trainings]
        left = self.budget - sum(need.least for need in needs)
        more = shared(left, [need.most - need.least for need in needs])
        parts = [need.least + extra for need, extra in zip(needs, more, strict=True)]
        for training, part in zip(trainings, parts, strict=True):
            training.limit(part)
        self._count()
        return parts

    def _count(self) -> None:
        self._stats.bytes = sum(training.holds for training in self._held.values())
