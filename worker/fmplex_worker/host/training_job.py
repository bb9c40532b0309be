"""A tuning job whose units run on this worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from fmplex_worker.training import RunProgress, Snapshot, Training, Unit


class Cut(NamedTuple):
    """The state of a training after some step, and how far it was then."""

    snapshot: Snapshot
    progress: RunProgress

    @property
    def step(self) -> int:
        """The step that it was taken after."""
        return self.snapshot.step

    @property
    def best(self) -> bool:
        """Whether no earlier state was better."""
        return self.progress.best_step == self.step


@dataclass(slots=True, eq=False)
class TrainingJob:
    """A training that has been opened. `vfm`: whose device time it is, by `weight` against other trainings; `alone`: a worker has
    died of it, so its units run only while nothing else is in hand; they have taken so many `seconds` of the device here.

    `news` is set when there is something for its owner: a `cut` to save, or the end: `error`, or `ended` with no more units.
    `progress`: after the last unit; `best`: the last cut of which none before was better.
    """

    id: str
    vfm: str
    weight: float
    training: Training
    alone: bool = False
    unit: Unit | None = None
    seconds: float = 0.0
    progress: RunProgress | None = None
    cut: Cut | None = None
    best: Cut | None = None
    ended: bool = False
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def advance(self) -> None:
        """Note how far it is, its next unit, and its state if there is something new to save. Device thread."""
        self.unit = self.training.next()
        self.progress = self.training.progress
        if self.training.checkpoint_due:
            self.cut = Cut(self.training.snapshot(), self.progress)
            self.best = self.cut if self.cut.best else self.best

    @property
    def over(self) -> bool:
        """Whether no unit of it will run any more."""
        return self.ended or self.error is not None
