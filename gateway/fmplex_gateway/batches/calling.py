"""One line of a batch, from what it says to its row: it is asked for until it is answered, or nobody waits for it any more."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmplex_broker.errors import Conflict, DeadlineExceeded, FmplexError, StaleVersion
from fmplex_broker.specs.batches import MOST_WINDOW_S, BatchRecord
from fmplex_broker.streams.producer import StoredReply
from fmplex_broker.wire.messages import OFFLINE
from fmplex_gateway.access import Principal
from fmplex_gateway.answers import Answer, Asking, answer, may_pass, vfm_of
from fmplex_gateway.batches.desk import Desk
from fmplex_gateway.batches.errors import LineError, NotRun
from fmplex_gateway.batches.gates import Visit
from fmplex_gateway.batches.lines import LARGE_LINE_BYTES, Line, RawLine, custom_id_of, error_row, output_row, read_line

log = logging.getLogger(__name__)
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.2, 5.0
_OVER_S = 1.0  # an answer that came so shortly before the end of the window that there was none is late
_MOST_NAME = 128
_MANY_JOBS = 16  # of a line whose row is written on a thread


@dataclass(frozen=True, slots=True)
class Answered:
    """A line that is done: its `row`, for the output file if it is `ok`, else for the error file; the `version` that answered it,
    and where the replies to its jobs are stored."""

    index: int
    row: bytes
    ok: bool
    version: str = ""
    jobs: tuple[StoredReply, ...] = ()


class Caller:
    """Calls the lines of one batch, with the rights of the key that ordered it. `holder`: of the batch."""

    def __init__(self, desk: Desk, record: BatchRecord, holder: str) -> None:
        self._desk = desk
        self._batch = record.order.id
        self._endpoint = record.order.endpoint
        self._ends_at = record.expires_at
        self._holder = holder
        self._principal = Principal(record.order.owner, frozenset({"infer"}), record.order.models)

    async def read(self, raw: RawLine) -> Line | Answered:
        """Return the call that a line asks for; its row, if it asks for none."""
        try:
            if len(raw.data) > LARGE_LINE_BYTES:
                return await self._desk.disk.run(read_line, raw.data, raw.number, self._endpoint)
            return read_line(raw.data, raw.number, self._endpoint)
        except LineError as e:
            return self._failed(raw, e.custom_id, e, self._endpoint)

    async def call(self, raw: RawLine, line: Line) -> Answered | None:
        """Call a line until it is answered; None if the window ended first."""
        try:
            answered = await self._answer(line)
            return None if answered is None else await self._written(raw, line, answered)
        except FmplexError as e:
            error = e
        except Exception:  # one line must not end the batch
            log.exception("line %d of batch %s failed", raw.number, self._batch)
            error = FmplexError("the gateway failed; its log says how")
        return self._failed(raw, line.custom_id, error, line.url)

    def not_run(self, raw: RawLine, why: NotRun) -> Answered:
        """Give up a line."""
        return self._failed(raw, custom_id_of(raw.data), why, self._endpoint)

    async def _answer(self, line: Line) -> Answer | None:
        """Ask until there is an answer; None if the window is over. Raises what is the line's answer, if that is an error."""
        key, tries = f"batch:{self._batch}:{line.number}", 0
        gate = self._desk.gates.of(vfm_of(line.url) or str(line.body.get("model"))[:_MOST_NAME])
        while self._left_s() > 0:
            visit = await gate.enter()
            try:
                return await answer(self._desk.queue, line.url, line.body, self._asking(key, visit))
            except DeadlineExceeded:
                if self._left_s() < _OVER_S:
                    return None
                raise  # a deadline of its own
            except Conflict as e:
                # What it means to its vFM has changed since it was asked for.
                if isinstance(e, StaleVersion) or key.endswith(self._holder):
                    raise
                key = f"{key}:{self._holder}"
            except FmplexError as e:
                if not may_pass(e):
                    raise
                tries += 1
                pause_s = _pause(e.retry_after, tries)
                if visit.asking:  # it was not taken, and others would not be
                    gate.close(pause_s)
                else:
                    await asyncio.sleep(pause_s)
            finally:
                visit.end()
        return None

    def _asking(self, key: str, visit: Visit) -> Asking:
        timeout_s = min(self._left_s(), MOST_WINDOW_S)  # the clock is the server's but for a few milliseconds
        taken = partial(visit.end, taken=True)
        return Asking(self._principal, OFFLINE, max(timeout_s * 1000, 1), key, taken)

    def _left_s(self) -> float:
        return self._ends_at - self._desk.clock.now()

    async def _written(self, raw: RawLine, line: Line, got: Answer) -> Answered:
        async with self._desk.turn:
            if len(got.jobs) > _MANY_JOBS:
                row = await self._desk.disk.compute(output_row, self._batch, line, got)
            else:
                row = output_row(self._batch, line, got)
                await asyncio.sleep(0)
        return Answered(raw.index, row, True, got.version, tuple(got.jobs))

    def _failed(self, raw: RawLine, custom_id: str | None, error: FmplexError, url: str) -> Answered:
        return Answered(raw.index, error_row(self._batch, raw.number, custom_id, error, url), False)


def _pause(retry_after: float | None, tries: int) -> float:
    """Return the seconds to wait after so many tries: what was said, longer if that was not enough, and not as long as others."""
    pause_s = min(max(retry_after or 0.0, _LEAST_PAUSE_S) * (1 + tries / 4), _MOST_PAUSE_S)
    return pause_s * random.uniform(0.8, 1.2)


def inputs_of(body: dict[str, Any]) -> int:
    """Count the inputs that a body asks for, as far as that can be seen."""
    return max(len(body[key]) if isinstance(body.get(key), list) else 1 for key in ("input", "inputs", "prompt"))
