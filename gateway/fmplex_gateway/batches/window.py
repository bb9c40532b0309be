"""The window of a batch: its lines that are with workers, each a task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fmplex_gateway.batches.calling import Answered, Caller, inputs_of
from fmplex_gateway.batches.desk import WINDOW_BYTES, WINDOW_INPUTS, Room
from fmplex_gateway.batches.lines import Line, RawLine
from fmplex_gateway.ending import end

AGAIN_S = (
    300.0  # lines that have waited for so long are asked for again: a broker that lost its memory does not know of them
)


@dataclass(slots=True)
class _Open:
    raw: RawLine
    line: Line
    inputs: int
    since: float
    tasks: list[asyncio.Task[Answered | None]] = field(default_factory=list)


class Window:
    """Lines of one batch that are being answered. `answered` is told each row; `changed`, that there is room for more."""

    def __init__(
        self, caller: Caller, room: Room, answered: Callable[[Answered], None], changed: Callable[[], None]
    ) -> None:
        self._caller = caller
        self._room = room
        self._answered = answered
        self._changed = changed
        self._open: dict[int, _Open] = {}
        self._inputs = self._nbytes = 0
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def has_room(self) -> bool:
        """True if one more line may be asked for; a batch that has none with workers may always have one."""
        if not self._open:
            return True
        fits = self._inputs < WINDOW_INPUTS and self._nbytes < WINDOW_BYTES
        return fits and len(self._open) < self._room.lines and not self._room.full

    async def start(self, raw: RawLine) -> None:
        """Ask for a line, without waiting for its answer."""
        line = await self._caller.read(raw)
        if isinstance(line, Answered):
            self._answered(line)
            return
        opened = _Open(raw, line, inputs_of(line.body), time.monotonic())
        self._open[raw.index] = opened
        self._count(opened, 1)
        self._ask(opened)

    def ask_again(self) -> None:
        """Ask again for lines that have waited long; whichever answer comes first counts. Who asked in between is given up."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + AGAIN_S / 10
        for opened in self._open.values():
            if opened.since < now - AGAIN_S:
                opened.since = now
                for task in opened.tasks[1:]:
                    task.cancel()
                del opened.tasks[1:]
                self._ask(opened)

    async def stop(self) -> None:
        """Cancel the jobs of all lines that are not answered."""
        tasks = [task for opened in self._open.values() for task in opened.tasks]
        for opened in list(self._open.values()):
            self._close(opened)
        await end(tasks)

    def _ask(self, opened: _Open) -> None:
        task = asyncio.create_task(self._caller.call(opened.raw, opened.line))
        opened.tasks.append(task)
        task.add_done_callback(lambda task: self._landed(opened, task))

    def _landed(self, opened: _Open, task: asyncio.Task[Answered | None]) -> None:
        if task.cancelled() or self._open.get(opened.raw.index) is not opened:
            return
        self._close(opened)
        for other in opened.tasks:
            other.cancel()
        if (answered := task.result()) is not None:
            self._answered(answered)
        self._changed()

    def _close(self, opened: _Open) -> None:
        del self._open[opened.raw.index]
        self._count(opened, -1)

    def _count(self, opened: _Open, sign: int) -> None:
        self._inputs += sign * opened.inputs
        self._nbytes += sign * len(opened.raw.data)
        self._room.nbytes += sign * len(opened.raw.data)
