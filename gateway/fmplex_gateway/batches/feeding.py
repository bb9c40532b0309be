"""Answering the lines of one batch: from its input file through the window into parts, and what is left when time is over."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from fmplex_broker.errors import UnknownFile
from fmplex_broker.specs.batches import BatchRecord
from fmplex_gateway.batches.calling import Answered, Caller
from fmplex_gateway.batches.desk import Desk
from fmplex_gateway.batches.errors import BatchCancelled, BatchExpired, InputFileDeleted, NotRun
from fmplex_gateway.batches.lines import RawLine, error_row
from fmplex_gateway.batches.parts import Parts
from fmplex_gateway.batches.patience import GivenBack, Patience
from fmplex_gateway.batches.reading import LineReader, left_of
from fmplex_gateway.batches.window import Window
from fmplex_gateway.ending import end

_AHEAD_LINES, _AHEAD_BYTES = 64, 1 << 18  # that are read at once
_LEFT_LINES, _LEFT_BYTES = 2048, 4 << 20  # likewise, of those that will not be run
_A_TURN = 16  # lines that are asked for before others get theirs: their jobs go to the broker in one call
_GATHER_S = 0.005  # answers come a pass at a time: those who follow them are asked for together, too
_LOOK_S = 1.0  # how often the time is looked at

EXPIRED = BatchExpired(
    "the batch's completion window is over and the line has not been answered; send it in another batch"
)
CANCELLED = BatchCancelled("the batch was cancelled before the line was answered")
DELETED = InputFileDeleted("the batch's input file was deleted before the line was answered; upload it again")


class Feeding:
    """Answers the lines of a batch that are not in its `parts`. `holder`: of the batch; `patience`: knows whether it is still
    ours."""

    def __init__(self, desk: Desk, record: BatchRecord, holder: str, parts: Parts, patience: Patience) -> None:
        self._desk = desk
        self._record = record
        self._parts = parts
        self._patience = patience
        self._woken = asyncio.Event()
        self._cancelled = record.status == "cancelling"
        self._deleted = False
        self._ahead: deque[RawLine] = deque()
        self._putting: asyncio.Task[None] | None = None
        self._caller = Caller(desk, record, holder)
        self._reader = LineReader(desk.store, record.order.input_file_id, parts.done)
        self.window = Window(self._caller, desk.room, parts.add, self._woken.set)

    def tell(self, *, cancelled: bool, deleted: bool) -> None:
        """Note that the batch was cancelled, or its input file deleted; and look at what else has changed."""
        self._cancelled = self._cancelled or cancelled
        self._deleted = self._deleted or deleted
        self._woken.set()

    async def answer_all(self) -> NotRun | None:
        """Answer the lines until all are; return why those that are not will not be. Raises `Lost`, and `GivenBack` when others
        are to go on."""
        try:
            why = await self._feed()
            if not self._patience.closing:
                await self.window.stop()
            await self._put_all()
            if why is None and self._parts.lines < self._record.total:
                why = EXPIRED  # so shortly before its end that there was no time to ask again
        except BaseException:
            await self._give_up()
            raise
        finally:
            await self._desk.disk.run(self._reader.close)
        if self._patience.closing:
            raise GivenBack
        if why is not None:
            await self._give_up_lines(why)
        return why

    # --- while they are answered ---

    async def _feed(self) -> NotRun | None:
        while True:
            self._patience.check()
            if self._patience.closing:
                return None
            if why := self._why_not():
                return why
            self._put_if_due()
            try:
                await self._fill()
            except UnknownFile:
                return DELETED
            if not self._ahead and self._reader.at_end and not len(self.window):
                return None
            await self._rest()

    def _why_not(self) -> NotRun | None:
        """Return why no more lines are to be answered; None while they are."""
        if self._cancelled:
            return CANCELLED
        if self._deleted:
            return DELETED
        return EXPIRED if self._desk.clock.now() >= self._record.expires_at else None

    async def _fill(self) -> None:
        """Ask for as many lines as there is room for. Others get turns in between."""
        asked = 0
        while self.window.has_room and not self._parts.is_full(len(self.window)):
            if not self._ahead:
                if self._reader.at_end:
                    return
                self._ahead.extend(
                    await self._patience.until_done(
                        lambda: self._desk.disk.run(self._reader.read, _AHEAD_LINES, _AHEAD_BYTES)
                    )
                )
            elif self._patience.closing or not self._patience.is_sure or self._why_not():
                return
            else:
                await self.window.start(self._ahead.popleft())
                asked += 1
                if asked % _A_TURN == 0:
                    await asyncio.sleep(0)
                self._put_if_due()

    async def _rest(self) -> None:
        """Wait until a line is answered, rows are in a part, or it is time to look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._woken.wait()
                await asyncio.sleep(_GATHER_S)
        self._woken.clear()
        self.window.ask_again()

    def _put_if_due(self) -> None:
        if self._putting is not None and self._putting.done():
            putting, self._putting = self._putting, None
            putting.result()
        began_s = self._desk.clock.now() - (self._record.in_progress_at or self._record.created_at)
        if self._putting is None and self._parts.is_due(began_s):
            self._putting = asyncio.create_task(self._parts.put())
            self._putting.add_done_callback(lambda _: self._woken.set())

    async def _put_all(self) -> None:
        if self._putting is not None:
            putting, self._putting = self._putting, None
            await putting
        while not self._parts.is_empty:
            await self._parts.put()

    async def _give_up(self) -> None:
        """Leave everything as it is: another one has the batch, or will have it."""
        if self._putting is not None:
            await end([self._putting])
        if not self._patience.closing:
            await self.window.stop()
        self._parts.drop()

    # --- and when no more are ---

    async def _give_up_lines(self, why: NotRun) -> None:
        """Write all lines that are not done to the error file."""
        reader = LineReader(self._desk.store, self._record.order.input_file_id, self._parts.done)
        try:
            while not reader.at_end:
                given_up = await self._patience.until_done(lambda: self._desk.disk.compute(self._left, reader, why))
                for answered in given_up:
                    self._parts.add(answered)
                await self._put_all()
        except UnknownFile:  # not even their ids are known any more
            for index in left_of(self._record.total, self._parts.done):
                row = error_row(self._record.order.id, index + 1, None, why, self._record.order.endpoint)
                self._parts.add(Answered(index, row, False))
            await self._put_all()
        finally:
            await self._desk.disk.run(reader.close)

    def _left(self, reader: LineReader, why: NotRun) -> list[Answered]:
        return [self._caller.not_run(raw, why) for raw in reader.read(_LEFT_LINES, _LEFT_BYTES)]
