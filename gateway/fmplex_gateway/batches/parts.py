"""The rows of a batch: gathered in memory, put into parts in the store, recorded, and at the end joined to its two files.

A row is safe once its part is recorded; only then are the stored replies of its line deleted. Whoever takes the batch over before
finds these, or the jobs themselves, under the line's idempotency key.
"""

from __future__ import annotations

import logging
import shutil
import time
from functools import partial
from typing import Literal, TypeAlias

from fmplex_broker.errors import FmplexError
from fmplex_broker.packages.files import FileStore
from fmplex_broker.streams.batch_list import Held, Progress
from fmplex_gateway.batches.calling import Answered
from fmplex_gateway.batches.desk import WINDOW_BYTES, WINDOW_LINES, Desk
from fmplex_gateway.batches.patience import Patience
from fmplex_gateway.batches.reading import DoneLines

log = logging.getLogger(__name__)
Kind: TypeAlias = Literal["output", "errors"]
PART_BYTES = WINDOW_BYTES // 2
_LEAST_AGE_S, _MOST_AGE_S, _SHARE = 2.0, 300.0, 0.01
_COPIED = 1 << 20


def is_due(rows: int, nbytes: int, age_s: float, began_s: float) -> bool:
    """Tell whether rows are to be put into a part: there are a window's worth of them, or the oldest has waited for `age_s`
    seconds, a hundredth of the time for which the batch has run, `began_s`: so there are never very many parts."""
    if not rows:
        return False
    waits = min(max(_LEAST_AGE_S, _SHARE * began_s), _MOST_AGE_S)
    return rows >= WINDOW_LINES or nbytes >= PART_BYTES or age_s >= waits


class Parts:
    """The parts of a batch that is `held`, and the rows that are in none yet."""

    def __init__(self, desk: Desk, held: Held, patience: Patience) -> None:
        self._desk = desk
        self._patience = patience
        self._batch, self._holder = held.record.order.id, held.holder
        self.done = DoneLines(held.done)
        self._names = list(held.parts)
        self._completed, self._failed = held.record.completed, held.record.failed
        self._versions = dict.fromkeys(held.record.versions)
        self._rows: list[Answered] = []
        self._unrecorded = self._nbytes = self._written = 0
        self._since = 0.0
        self._added_at = time.monotonic()

    @property
    def still_s(self) -> float:
        """For how many seconds no row has come."""
        return time.monotonic() - self._added_at

    @property
    def lines(self) -> int:
        """How many lines are recorded as done."""
        return self._completed + self._failed

    @property
    def is_empty(self) -> bool:
        """True if every row is in a part."""
        return not self._rows

    def is_full(self, open_lines: int) -> bool:
        """Tell whether no more lines should be asked for until rows are recorded, while so many are open: at most two windows'
        worth would run again, should all of this be lost."""
        return self._unrecorded + open_lines >= 2 * WINDOW_LINES or self._nbytes >= WINDOW_BYTES

    def add(self, answered: Answered) -> None:
        """Take the row of a line that is done."""
        self._added_at = time.monotonic()
        if not self._rows:
            self._since = self._added_at
        self._rows.append(answered)
        self._count(1, len(answered.row))

    def is_due(self, began_s: float) -> bool:
        """Tell whether rows are to be put into a part now; `began_s`: for how long the batch has run."""
        crowded = self._desk.room.full and bool(self._rows)
        return crowded or is_due(len(self._rows), self._nbytes, time.monotonic() - self._since, began_s)

    async def put(self) -> None:
        """Put a window's worth of rows into parts and record them: so many at most run again where a broker forgets that. Raises
        `Lost`: then nothing of it counts, and as `Patience` does."""
        rows, self._rows = self._rows[:WINDOW_LINES], self._rows[WINDOW_LINES:]
        nbytes = sum(len(row.row) for row in rows)
        try:
            names = await self._store(rows)
            await self._record(rows, names)
        finally:
            self._count(-len(rows), -nbytes)
        await self._trim(rows)

    def drop(self) -> None:
        """Forget the rows: somebody else has the batch."""
        self._count(-len(self._rows), -sum(len(row.row) for row in self._rows))
        self._rows = []

    async def join(self, kind: Kind, name: str) -> int | None:
        """Join the parts of a kind to a file of the store; return its bytes, None if there are none. Raises as `put` does, and
        `UnknownFile` if a part has gone."""
        names = [part for part in self._names if part.startswith(f"{kind}-")]
        if not names:
            return None
        parts = [f"{self._batch}/{part}" for part in names]
        return await self._patience.until_done(lambda: self._desk.disk.run(_join, self._desk.store, parts, name))

    # --- inner ---

    async def _store(self, rows: list[Answered]) -> list[str]:
        """Write a part of each kind of which there are rows; return their names. A part that is not recorded counts for nothing,
        and none is ever written twice."""
        self._written += 1
        names = []
        for kind, ok in (("output", True), ("errors", False)):
            if mine := [row.row for row in rows if row.ok is ok]:
                names.append(f"{kind}-{self._holder}-{self._written}.jsonl")
                path = f"{self._batch}/{names[-1]}"
                await self._patience.until_done(partial(self._desk.disk.run, _write, self._desk.store, path, mine))
        return names

    async def _record(self, rows: list[Answered], names: list[str]) -> None:
        done = self.done.with_lines([row.index for row in rows])
        completed = sum(row.ok for row in rows)
        versions = self._versions | dict.fromkeys(row.version for row in rows if row.version)
        progress = Progress(
            done.raw(), self._completed + completed, self._failed + len(rows) - completed, list(versions)
        )
        known = len(self._names)
        await self._patience.until_done(
            lambda: self._desk.batches.record(self._batch, self._holder, progress, known, names)
        )
        self.done, self._versions = done, versions
        self._completed, self._failed = progress.completed, progress.failed
        self._names += names
        self._desk.lines.update(completed=completed, failed=len(rows) - completed)

    async def _trim(self, rows: list[Answered]) -> None:
        try:
            await self._desk.queue.forget_results([stored for row in rows for stored in row.jobs])
        except FmplexError as e:  # they go by themselves
            log.warning("replies to batch %s stay for a quarter of an hour: %s", self._batch, e)

    def _count(self, rows: int, nbytes: int) -> None:
        self._unrecorded += rows
        self._nbytes += nbytes
        self._desk.room.nbytes += nbytes


def _write(store: FileStore, name: str, rows: list[bytes]) -> None:
    with store.writing(name) as file:
        for row in rows:
            file.write(row)


def _join(store: FileStore, parts: list[str], name: str) -> int:
    nbytes = 0
    with store.writing(name) as file:
        for part in parts:
            with store.open(part) as rows:
                shutil.copyfileobj(rows, file, _COPIED)
                nbytes += rows.tell()
    return nbytes
