"""From what was claimed to what the engine takes: decoded, validated and tokenised, off the event loop.

What is quick goes together, all vFMs in one batch. By itself goes what may be slow, one job of a vFM at a time on a thread of its
own, so that it keeps nobody waiting but more of its own vFM, and is charged for it; and what may have killed a worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from fmplex_broker.errors import DeadlineExceeded, FmplexError, JobFailed
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import Flow, Request, decode_request
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.preparation_line import PreparationLine, Turn
from fmplex_worker.protocol import Engine, Prepared

log = logging.getLogger(__name__)
THREADS = 8
_TURNS = 4  # vFMs that prepare jobs by themselves at a time; the other threads are for batches, redelivered jobs and surprises
# A batch that takes longer has a surprise in it, and what comes does not wait for it.
_PATIENCE_S, _PATIENCE_A_JOB_S = 0.1, 0.002
_MOMENT_S = 0.05  # what a job takes by itself without a charge: it is not the device's time
_SLOW_S = 60.0  # so long a vFM passes for slow, unless a job of it that is prepared by itself shows that it is not
_MOST_SAID = 500  # characters of an error


class Preparation:
    """Prepares jobs whose version is here. `tasks`: where that goes on beside the intake."""

    def __init__(
        self,
        engine: Engine,
        dispatcher: Dispatcher,
        clock: ServerClock,
        threads: Executor,
        blame: Blame,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self.tasks = tasks
        self._engine = engine
        self._dispatcher = dispatcher
        self._clock = clock
        self._threads = threads
        self._blame = blame
        self._arriving: list[Turn] = []
        self._batch: tuple[asyncio.Task[None], float] | None = None  # the last one, and when it should end
        self._line = PreparationLine(_TURNS)
        self._slow: dict[str, float] = {}  # vFM -> until when it passes for slow

    @property
    def crowded(self) -> set[Flow]:
        """Flows that have jobs here which wait for a preparation of their own: more of theirs would only wait beside them."""
        return self._line.flows

    async def admit(self, jobs: Iterable[ActiveJob], *, marked: bool) -> None:
        """Prepare jobs and queue them; answer those that are not acceptable. Returns when what is quick is through, or takes
        longer than it should. `marked`: a claim has just marked those that come for the first time."""
        quick = [turn for job in jobs if (turn := self._sort(job)) is not None]
        self._start_turns()
        if not quick:
            return
        if marked:
            self._blame.note_claimed(turn.job for turn in quick)
        else:
            await self._blame.prepare(turn.job for turn in quick)
        self._arriving += quick
        await self._in_common()

    def _sort(self, job: ActiveJob) -> Turn | None:
        """Return a job that goes with others; put aside one that goes by itself."""
        try:
            turn = Turn(job, self._decode(job.claimed))
            quick = job.flow.vfm not in self._slow and self._engine.quick(job.digest, turn.request)
        except Exception as e:
            self._dispatcher.answer(job, e if isinstance(e, FmplexError) else _failed(e))
            return None
        if quick and not job.redelivered:
            return turn
        self._dispatcher.set_aside(job)
        if not job.redelivered:
            self._line.add(turn)
        elif self._dispatcher.quarantine.admit(job, lambda _: self._start(turn)):
            self._start(turn)
        return None

    def _decode(self, claimed: Claimed) -> Request:
        if not claimed.payload or claimed.deadline_ms <= self._clock.now_ms():
            raise DeadlineExceeded("the job waited too long to be done by its deadline; it was not run")
        return replace(decode_request(claimed.payload), vfm=claimed.flow.vfm)

    # ---- together ----

    async def _in_common(self) -> None:
        """Prepare what has arrived. What comes while a batch is being prepared goes together when that is through."""
        await self._batch_ends()
        arrived, self._arriving = self._arriving, []
        if arrived:  # else somebody who waited too has taken it along
            most_s = _PATIENCE_S + _PATIENCE_A_JOB_S * len(arrived)
            self._batch = self.tasks.create_task(self._prepare_batch(arrived, most_s)), time.monotonic() + most_s
        if not await self._batch_ends():
            until = time.monotonic() + _SLOW_S
            self._slow |= dict.fromkeys((turn.job.flow.vfm for turn in arrived), until)

    async def _batch_ends(self) -> bool:
        """Wait for the last batch, as long as it may take; tell whether it has ended."""
        if self._batch is None:
            return True
        task, due = self._batch
        if not task.done():
            await asyncio.wait({task}, timeout=max(0.0, due - time.monotonic()))
        return task.done()

    async def _prepare_batch(self, turns: list[Turn], most_s: float) -> None:
        """Prepare jobs together, which should take `most_s` seconds at most."""
        began = time.monotonic()
        made = await self._made(turns)
        seconds = time.monotonic() - began
        self._blame.prepared(turn.job for turn in turns)
        if seconds > most_s and len({turn.job.flow for turn in turns}) == 1:  # else nobody knows whose it was
            self._dispatcher.owe(turns[0].job, seconds)
        for turn, result in zip(turns, made, strict=True):
            self._enter(turn, result)

    # ---- by themselves ----

    def _start_turns(self) -> None:
        """Begin with those whose turn has come."""
        now = time.monotonic()
        self._slow = {vfm: until for vfm, until in self._slow.items() if until > now}
        while (turn := self._line.next()) is not None:
            self.tasks.create_task(self._in_line(turn))
            self._dispatcher.note_room()  # more of its flow may be claimed

    async def _in_line(self, turn: Turn) -> None:
        seconds = 0.0
        try:
            seconds = await self._prepare_alone(turn)
        finally:
            self._line.ended(turn.job.flow.vfm, seconds)
        self._start_turns()

    def _start(self, turn: Turn) -> None:
        """Begin with a redelivered job, whose turn it is."""
        coroutine = self._prepare_alone(turn)
        try:
            self.tasks.create_task(coroutine)
        except RuntimeError:  # the one before it has ended after the intake has: what is left is given back
            coroutine.close()

    async def _prepare_alone(self, turn: Turn) -> float:
        """Prepare a job by itself, and charge what takes long; return the seconds that took. Raises `LeaseLost`."""
        job = turn.job
        await self._blame.prepare([job])
        if job.ended:
            self._blame.prepared([job])
            return 0.0
        began = time.monotonic()
        (made,) = await self._made([turn])
        seconds = time.monotonic() - began
        self._blame.prepared([job])
        if seconds < _PATIENCE_S:
            self._slow.pop(job.flow.vfm, None)
        if seconds > _MOMENT_S:
            self._dispatcher.owe(job, seconds)
        self._enter(turn, made)
        return seconds

    # ---- both ----

    def _enter(self, turn: Turn, made: Prepared | FmplexError) -> None:
        turn.job.streams = turn.request.params.get("stream") is True
        if isinstance(made, FmplexError):
            self._dispatcher.answer(turn.job, made)
        elif not turn.job.ended:  # else it was cancelled while it was being prepared
            self._dispatcher.enter(turn.job, made)

    async def _made(self, turns: Sequence[Turn]) -> list[Prepared | FmplexError]:
        batch = [(turn.job.digest, turn.request) for turn in turns]
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._make, batch)

    def _make(self, batch: Sequence[tuple[str, Request]]) -> list[Prepared | FmplexError]:
        """Prepare requests; what raises is the error of the one that it is raised for. Any thread."""
        try:
            return self._engine.prepare(batch)
        except BaseException as e:  # the panic of a library in Rust is no Exception
            log.warning("preparing %d jobs failed", len(batch), exc_info=True)
            if len(batch) == 1:
                return [_failed(e)]
        return [made for one in batch for made in self._make([one])]


def _failed(error: BaseException) -> JobFailed:
    why = f"{type(error).__name__}: {error}"[:_MOST_SAID]
    return JobFailed(f"the worker failed while preparing this job ({why}); send another input")
