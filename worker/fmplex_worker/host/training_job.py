"""A tuning job whose units run on this worker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fmplex_worker.training import RunProgress, Snapshot, Training, Unit


@dataclass(slots=True, eq=False)
class TrainingJob:
    """A training that has been opened. `vfm`: whose device time it is, by `weight` against other trainings; `alone`: a worker has
    died of it, so its units run only while nothing else is in hand; they have taken so many `seconds` of the device here.

    `news` is set when there is something for its owner: a `snapshot` to save, or the end: `error`, or `ended` with no more units.
    `progress`: after the last unit; `noted`: when `snapshot` was taken.
    """

    id: str
    vfm: str
    weight: float
    training: Training
    alone: bool = False
    unit: Unit | None = None
    seconds: float = 0.0
    progress: RunProgress | None = None
    snapshot: Snapshot | None = None
    noted: RunProgress | None = None
    ended: bool = False
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        """Whether no unit of it will run any more."""
        return self.ended or self.error is not None
