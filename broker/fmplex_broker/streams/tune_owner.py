"""Tuning jobs, as a worker has them in hand: claims, saves and ends, all fenced by its lease.

A worker's id is new every life, and each take of a job has a number (`take`), so what comes late of a worker that was stopped,
has lost its lease, or has given the job back is refused: `TuneLost`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic_core import to_json

from fmplex_broker.errors import Poisoned
from fmplex_broker.specs.tune_records import Checkpoint, Level, TuneEnd, TuneError, TuneProgress, TuneRecord, kept
from fmplex_broker.specs.tuning import TunePlace
from fmplex_broker.streams.connection import Arg, Client, Scripts
from fmplex_broker.streams.keys import Keys
from fmplex_broker.streams.tune_records import read_tunes, tidy

Asked: TypeAlias = Literal["", "pause", "cancel"]
MOST_SAID = 1_000  # events that wait for the next save
_AT_ONCE = 200  # events a save
_WORN = "its worker has ended {} times since it last came on; look at its events, and at the workers' memory and logs"


class TuneLost(Exception):
    """The tuning job is in other hands now, or nobody's: what is learnt of it here is not wanted."""


@dataclass(slots=True)
class HeldTune:
    """A tuning job that was claimed. `record`: as it was then; `take`: number of this take; `checkpoints`: that are kept now;
    `dropped`: that are not any more; `said`: events that are yet to be sent, by number. What a save that has failed should have
    said, the next one says."""

    record: TuneRecord
    take: int
    checkpoints: tuple[Checkpoint, ...]
    dropped: tuple[Checkpoint, ...] = ()
    unsaved: bool = False
    said: deque[tuple[int, Level, str, str]] = field(default_factory=lambda: deque(maxlen=MOST_SAID))
    events: int = 0
    saves: int = 0

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
        self.events += 1
        self.said.append((self.events, level, message, _json(data) if data else ""))

    def keep(self, checkpoint: Checkpoint) -> None:
        """Note a checkpoint whose files are in the store; the next save says it."""
        now = kept([*self.checkpoints, checkpoint])
        self.dropped += tuple(one for one in self.checkpoints if one not in now)
        self.checkpoints, self.unsaved = now, True


class Saved(NamedTuple):
    """What was said to a save. `asked`: what its owner asks for: to give the job back ("pause"), or to end it ("cancel");
    `dropped`: checkpoints that are kept no longer, whose files may go."""

    asked: Asked
    dropped: tuple[Checkpoint, ...]


class TuneOwner:
    """Claims, saves and ends tuning jobs for one life of one `worker` (the id of its `Consumer`). Raises as `broker_errors`
    does."""

    def __init__(self, redis: Client, scripts: Scripts, backbone: str, worker: str) -> None:
        self._redis = redis
        self._scripts = scripts
        self._backbone = backbone
        self._worker = worker
        self._vfms = Keys(backbone).vfms
        self._claims = 0  # sent

    async def claim(
        self, place: TunePlace, *, idle: bool, max_attempts: int, known: Collection[str] = ()
    ) -> HeldTune | None:
        """Take the next tuning job: of the owner who has had least for the weights of his jobs, the oldest one that may be done
        at this place. One that a worker has died of is had only by who is `idle`: has nothing in hand. `known`: jobs that are in
        hand here; another one that the broker believes to be (its answer was lost) is the next. Jobs of workers that have ended
        wait again, and fail when that has happened `max_attempts` times since the last new checkpoint.

        Each claim also says that this worker tunes, and at which place; until one does, jobs for its backbone are refused. None:
        there is none, or the lease is gone.
        """
        self._claims += 1
        worn = Poisoned(_WORN.format(max_attempts))
        error = TuneError(code=worn.code, message=worn.message)
        args: list[Arg] = [
            self._worker, self._claims, place.fingerprint, int(idle), max_attempts, error.model_dump_json(), error.message,
            *known,
        ]  # fmt: skip
        state, over, job, take = await self._scripts("tune_claim", self._vfms, args)
        if over:
            await tidy(self._redis, self._backbone)
        if state != b"ok":
            return None
        record = (await read_tunes(self._redis, [(job.decode(), self._backbone)]))[0]
        return None if record is None else HeldTune(record, int(take), record.checkpoints)

    async def save(
        self, held: HeldTune, progress: TuneProgress | None = None, checkpoint: Checkpoint | None = None
    ) -> Saved:
        """Record how far a job is, its events, and a checkpoint whose files are in the store. Safe to repeat. Raises
        `TuneLost`."""
        return await self._save(held, "", progress, checkpoint)

    async def release(
        self, held: HeldTune, progress: TuneProgress | None = None, checkpoint: Checkpoint | None = None
    ) -> Saved:
        """Save, and give the job back: it waits for a worker, unless its owner has asked for something else. Safe to repeat.
        Raises `TuneLost`."""
        return await self._save(held, "release", progress, checkpoint)

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
        outcome = [
            error.model_dump_json() if error else "",
            *(published or ("", "")),
            _json(result_files) if result_files else "",
        ]
        saved = await self._save(held, end, progress, checkpoint, outcome)
        await tidy(self._redis, self._backbone)
        return saved

    # --- inner ---

    async def _save(
        self,
        held: HeldTune,
        then: str,
        progress: TuneProgress | None,
        checkpoint: Checkpoint | None,
        outcome: Sequence[str] = ("", "", "", ""),
    ) -> Saved:
        if checkpoint is not None:
            held.keep(checkpoint)
        while len(held.said) > _AT_ONCE:  # the broker was away for long
            await self._send(held, list(held.said)[:_AT_ONCE], ["", "", 0, "", 0, 0, "", "", "", ""])
        last = held.checkpoints[-1] if held.checkpoints else None
        args: list[Arg] = [
            then,
            progress.model_dump_json() if progress else "",
            progress.tokens if progress else 0,
            _json([one.model_dump() for one in held.checkpoints]) if held.unsaved else "",
            last.step if last else 0,
            last.tokens if last else 0,
            *outcome,
        ]
        asked = await self._send(held, list(held.said), args)
        dropped, held.dropped, held.unsaved = held.dropped, (), False
        return Saved(asked, dropped)

    async def _send(self, held: HeldTune, events: Sequence[tuple[int, Level, str, str]], what: list[Arg]) -> Asked:
        held.saves += 1
        args: list[Arg] = [self._worker, held.id, held.take, held.saves, *what]
        for event in events:
            args += event
        state, asked = await self._scripts("tune_save", self._vfms, args)
        if state == b"lost":
            raise TuneLost(held.id)
        while events and held.said and held.said[0][0] <= events[-1][0]:
            held.said.popleft()
        answer: Asked = asked.decode()
        return answer


def _json(value: object) -> str:
    return to_json(value, inf_nan_mode="null").decode()
