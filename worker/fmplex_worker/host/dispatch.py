"""Between intake, passes and memory: which pieces of which jobs wait for a pass.

A job that holds memory between its passes (keys and values) waits for room for it before its first piece is queued, and again
when it outgrows what it has. Others are queued at once.
"""

from __future__ import annotations

from concurrent.futures import Executor

from fmplex_broker.wire.messages import Flow
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.host.quarantine import Quarantine, suspect
from fmplex_worker.host.stats import Memory
from fmplex_worker.protocol import Engine, Piece
from fmplex_worker.scheduling import Item, KvAdmission, Scheduler


class Dispatcher:
    """The event loop's side: what it lets run has room in the engine."""

    def __init__(self, engine: Engine, scheduler: Scheduler, window: JobTable, seats: KvAdmission) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._window = window
        self._seats = seats
        self._jobs: dict[str, ActiveJob] = {}  # that hold memory, or wait for it
        self._crowded: set[Flow] = set()  # as of the last turn
        self._suspects = Quarantine()

    @property
    def memory(self) -> Memory:
        """What is held and waited for now."""
        room = self._engine.capacity
        return Memory(self._seats.held_bytes, room.used, room.memory, room.cached, len(self._seats.waiting_flows))

    @property
    def crowded(self) -> set[Flow]:
        """Flows that have jobs here which wait for memory: more of theirs would only wait beside them."""
        return set(self._seats.waiting_flows)

    def enter(self, held: ActiveJob) -> None:
        """A job that intake has accepted."""
        assert held.prepared is not None
        if held.prepared.memory:
            self._ask(held)
            if not held.pieces:
                self._window.set_aside(held)
        else:
            self._queue(held)

    def go_on(self, held: ActiveJob) -> None:
        """A job that has landed and has not ended; it is in no other pass."""
        self._pass_on(held)
        if held.leaving:
            self._evict(held)
            self._turn()
            return
        assert held.prepared is not None
        if self._seats.holds(held.key, held.prepared.memory):
            self._queue(held)
        else:
            self._ask(held)

    def end(self, held: ActiveJob) -> None:
        """A job that is answered, or not ours any more. While it is in a pass it keeps its memory: call again when that ends."""
        for key in self._window.withdraw(held):
            self._scheduler.remove(key)
        if held.running:
            return
        self._pass_on(held)
        if self._jobs.pop(held.key, None) is not None:
            assert held.prepared is not None
            self._engine.drop(held.prepared)
            self._seats.release(held.key)
            self._turn()

    def abandon(self, thread: Executor) -> None:
        """The jobs are others' now. What they hold is given back on the device's thread, behind the pass that may run yet."""
        for held in self._jobs.values():
            assert held.prepared is not None
            thread.submit(self._engine.drop, held.prepared)
        self._jobs.clear()

    def _ask(self, held: ActiveJob) -> None:
        assert held.prepared is not None
        self._jobs[held.key] = held
        self._seats.request(held.key, held.job.flow, held.prepared.memory)
        self._turn()

    def _turn(self) -> None:
        while True:
            turn = self._seats.decide()
            for key in turn.granted:
                held = self._jobs[key]
                if held.aside:
                    self._window.take_back(held)
                self._queue(held)
            evicted = False
            for key in turn.to_evict:
                held = self._jobs[key]
                held.leaving = True
                if not held.running:
                    self._evict(held)
                    evicted = True
            if not evicted:
                break
        before, self._crowded = self._crowded, self.crowded
        if before - self._crowded:
            self._window.freed.set()  # their jobs may be claimed again

    def _evict(self, held: ActiveJob) -> None:
        """It is computed again later, from what is left of it in the cache of prefixes or from the beginning."""
        assert held.prepared is not None
        held.leaving = False
        for key in self._window.withdraw(held):
            self._scheduler.remove(key)
        self._pass_on(held)
        self._engine.drop(held.prepared)
        self._seats.release(held.key)
        self._seats.request(held.key, held.job.flow, held.prepared.memory)
        if not held.resident and not held.aside:
            self._window.set_aside(held)

    def _queue(self, held: ActiveJob) -> None:
        """What it asks of the passes to come waits its turn. In its flow all jobs take turns: a token of a text, a piece of a
        prompt; what is left of a prompt comes when all have had theirs."""
        assert held.prepared is not None
        pieces = held.prepared.pieces()
        if pieces and pieces[0].phase == "decode" and not self._suspects.may_go(held):
            return
        for key in self._window.withdraw(held):
            self._scheduler.remove(key)
        for at, piece in enumerate(pieces):
            self._scheduler.add(self._item(held, self._window.queue(held, piece), piece, follows=at > 0))

    def _pass_on(self, held: ActiveJob) -> None:
        """Whose turn comes behind it."""
        following = self._suspects.leave(held)
        if following is not None:
            if following.aside:
                self._window.take_back(following)
            self._queue(following)

    def _item(self, held: ActiveJob, key: str, piece: Piece, *, follows: bool) -> Item:
        prepared, decodes = held.prepared, piece.phase == "decode"
        assert prepared is not None
        return Item(
            key=key,
            flow=held.job.flow,
            phase=piece.phase,
            units=piece.units,
            segment=prepared.adapter or None,
            head=prepared.head or None,
            # Token by token it would keep everybody else waiting.
            alone=suspect(held) and not decodes,
            deadline=None if decodes else held.job.deadline_ms / 1000,
            follows=follows,
        )
