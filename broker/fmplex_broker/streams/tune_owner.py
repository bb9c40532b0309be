"""Tuning jobs, as a worker has them in hand: claims, saves and ends, all fenced by its lease.

A worker's id is new every life, and each take of a job has a number (`take`), so what comes late of a worker that was stopped,
has lost its lease, or has given the job back is refused: `Lost`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from fmplex_broker.specs.tune_records import Checkpoint, Level, TuneEnd, TuneError, TuneProgress, TuneRecord
from fmplex_broker.specs.tuning import TunePlace
from fmplex_broker.streams.connection import Client, Scripts

Asked: TypeAlias = Literal["", "pause", "cancel"]
MOST_SAID = 1_000  # events that wait for the next save


class TuneLost(Exception):
    """The tuning job is in other hands now, or nobody's: what is learnt of it here is not wanted."""


@dataclass(slots=True)
class HeldTune:
    """A tuning job that was claimed. `record`: as it was then; `take`: number of this take; `alone`: a worker has died of it, so
    its units run only while nothing else is in hand."""

    record: TuneRecord
    take: int
    checkpoints: tuple[Checkpoint, ...]

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.spec.id

    @property
    def alone(self) -> bool:
        """True if a worker has died of it: its units run only while nothing else is in hand."""
        return self.record.deaths > 0

    def say(self, message: str, level: Level = "info", data: dict[str, Any] | None = None) -> None:
        """Note an event, which the next save sends, once; with `data` (numbers) it is of the kind `metrics`."""
        raise NotImplementedError


class Saved(NamedTuple):
    """What was said to a save. `asked`: what its owner asks for: to give the job back ("pause"), or to end it ("cancel");
    `dropped`: checkpoints that are kept no longer, whose files may go."""

    asked: Asked
    dropped: tuple[Checkpoint, ...]


class TuneOwner:
    """Claims, saves and ends tuning jobs for one life of one worker (the id of its `Consumer`). Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, worker: str) -> None:
        raise NotImplementedError

    async def claim(
        self, place: TunePlace, *, idle: bool, max_attempts: int, known: Collection[str] = ()
    ) -> HeldTune | None:
        """Take the next tuning job: of the owner who has had least for the weights of his jobs, the oldest one that may be done
        at this place. One that a worker has died of is had only by who is `idle`: has nothing in hand. `known`: jobs that are
        in hand here; another one that the broker believes to be (its answer was lost) is the next. Jobs of workers that have
        ended wait again, and fail when that has happened `max_attempts` times since the last new checkpoint.

        The first claim also says that this worker tunes, and at which place; until then jobs for its backbone are refused. None:
        there is none, or the lease is gone.
        """
        raise NotImplementedError

    async def save(
        self, held: HeldTune, progress: TuneProgress | None = None, checkpoint: Checkpoint | None = None
    ) -> Saved:
        """Record how far a job is, its events, and a checkpoint whose files are in the store. Safe to repeat. Raises
        `TuneLost`."""
        raise NotImplementedError

    async def release(
        self, held: HeldTune, progress: TuneProgress | None = None, checkpoint: Checkpoint | None = None
    ) -> Saved:
        """Save, and give the job back: it waits for a worker, unless its owner has asked for something else. Raises
        `TuneLost`."""
        raise NotImplementedError

    async def finish(
        self,
        held: HeldTune,
        end: TuneEnd,
        *,
        progress: TuneProgress | None = None,
        checkpoint: Checkpoint | None = None,
        error: TuneError | None = None,
        published: tuple[str, str] | None = None,
        result_files: Sequence[str] = (),
    ) -> Saved:
        """Save, and end the job; what was cancelled meanwhile stays that. `published`: vFM and version. Safe to repeat. Raises
        `TuneLost`."""
        raise NotImplementedError
