"""What a job goes through between claim and reply: every step of a job's life on this worker is a call of the `Dispatcher`.

A job that holds memory between its passes (keys and values) waits for room for it before its first piece is queued, and again
when it outgrows what it has. Others are queued at once.
"""

from __future__ import annotations

from fmplex_broker.errors import Cancelled
from fmplex_broker.wire.messages import Flow
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.outbox import Outbox
from fmplex_worker.host.quarantine import Quarantine
from fmplex_worker.host.stats import Memory
from fmplex_worker.protocol import Engine, Piece, Prepared
from fmplex_worker.scheduling import Item, KvAdmission, Scheduler


class Dispatcher:
    """Moves jobs from state to state. What it lets run has memory in the engine. Event loop only."""

    def __init__(
        self, engine: Engine, scheduler: Scheduler, table: JobTable, admission: KvAdmission, outbox: Outbox
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._table = table
        self._admission = admission
        self._outbox = outbox
        self._holders: dict[str, ActiveJob] = {}  # jobs that hold memory, or wait for it
        self._crowded: set[Flow] = set()  # as of the last decision
        self.quarantine = Quarantine()

    @property
    def memory(self) -> Memory:
        """The memory that is held and waited for now."""
        has = self._engine.capacity
        held, waiting = self._admission.held_bytes, len(self._admission.waiting_flows)
        return Memory(held, has.used, has.memory, has.cached, waiting)

    @property
    def crowded(self) -> set[Flow]:
        """Flows that have jobs here which wait for memory: more of theirs would only wait beside them."""
        return set(self._admission.waiting_flows)

    # ---- before the first pass ----

    def await_version(self, job: ActiveJob) -> None:
        """Set a job aside while its version is brought here."""
        self._table.move(job, JobState.AWAITING_VERSION)

    def prepare(self, job: ActiveJob) -> None:
        """Let a job, whose version is here, into preparation."""
        self._table.move(job, JobState.PREPARING)

    def set_aside(self, job: ActiveJob) -> None:
        """Let a job wait for a preparation of its own."""
        self._table.move(job, JobState.AWAITING_PREPARATION)

    def note_room(self) -> None:
        """Note that more may be claimed of flows that were crowded."""
        self._table.freed.set()

    def owe(self, job: ActiveJob, seconds: float) -> None:
        """Charge a job's flow for seconds that its preparation took."""
        job.charged += self._scheduler.owe(job.flow, seconds)

    def enter(self, job: ActiveJob, prepared: Prepared) -> None:
        """Take a job in that has been prepared."""
        self._table.accept(job, prepared)
        if prepared.memory:
            self._request(job)
        else:
            self._queue(job)

    # ---- in passes ----

    def go_on(self, job: ActiveJob) -> None:
        """Queue what a job asks for next, after a pass that has not ended it."""
        self._pass_turn(job)
        if job.evicted:
            self._evict(job)
            self._decide()
        elif self._admission.holds(job.key, job.prepared.memory):
            self._queue(job)
        else:
            self._request(job)

    # ---- ends ----

    def answer(self, job: ActiveJob, output: object) -> None:
        """End a job with a reply: its output, or an `FmplexError`. Once; a job that has ended keeps its first reply."""
        if job.ended:
            return
        self._let_go(job)
        self._table.move(job, JobState.ANSWERED)
        self._outbox.send(job, output)

    def cancel(self, key: str) -> None:
        """Answer a job whose caller gave up: at once if it is in no pass, or when that has ended, or when it comes here."""
        job = self._table.get(key)
        if job is None:
            self._table.forgo(key)
        elif job.state is JobState.RUNNING:
            job.cancelled = Cancelled("the job was cancelled while it ran")
        else:
            self.answer(job, Cancelled("the job was cancelled before it ran"))

    def release_idle(self) -> list[ActiveJob]:
        """Forget every job that has not begun, and return them: they are to go back to the broker."""
        idle = [job for job in self._table if job.state is not JobState.RUNNING and not job.begun and not job.ended]
        for job in idle:
            self._let_go(job)
            self._table.move(job, JobState.RELEASED)
            self._table.forget(job)
        return idle

    def abandon(self, device: DeviceThread) -> None:
        """Give back what the jobs hold: they are others' now."""
        for job in self._holders.values():
            device.drop(job.prepared)
        self._holders.clear()

    def _let_go(self, job: ActiveJob) -> None:
        self._withdraw(job)
        self._pass_turn(job)
        if self._holders.pop(job.key, None) is not None:
            self._engine.drop(job.prepared)
            self._admission.release(job.key)
            self._decide()

    # ---- memory ----

    def _request(self, job: ActiveJob) -> None:
        """Ask for the memory that a job needs for its next pass."""
        self._withdraw(job)  # pieces that a cached prefix made needless must not run meanwhile
        self._pass_turn(job)  # others hold the memory, and may be waiting for their turn themselves
        self._table.move(job, JobState.AWAITING_MEMORY)
        self._holders[job.key] = job
        self._admission.request(job.key, job.flow, job.prepared.memory)
        self._decide()

    def _decide(self) -> None:
        """Queue who has what they asked for, and take it from who has to give way, until nothing changes."""
        while True:
            decision = self._admission.decide()
            for key in decision.granted:
                self._queue(self._holders[key])
            evicted = False
            for key in decision.to_evict:
                job = self._holders[key]
                if job.state is JobState.RUNNING:
                    job.evicted = True  # when it lands
                else:
                    self._evict(job)
                    evicted = True
            if not evicted:
                break
        before, self._crowded = self._crowded, self.crowded
        if before - self._crowded:
            self._table.freed.set()  # their jobs may be claimed again

    def _evict(self, job: ActiveJob) -> None:
        """Take a job's memory: it is computed again later, from what is left of it in the prefix cache or from the beginning."""
        job.evicted = False
        self._withdraw(job)
        self._pass_turn(job)
        self._engine.drop(job.prepared)
        self._admission.release(job.key)
        self._admission.request(job.key, job.flow, job.prepared.memory)
        if job.state is not JobState.AWAITING_MEMORY:
            self._table.move(job, JobState.AWAITING_MEMORY)

    # ---- the scheduler's queues ----

    def _queue(self, job: ActiveJob) -> None:
        """Queue what a job asks of the passes to come. In its flow all jobs take turns: a token of a text, a piece of a prompt;
        what is left of a prompt comes when all have had theirs."""
        self._withdraw(job)
        if not self.quarantine.admit(job, self._queue):
            self._table.move(job, JobState.QUARANTINED)
            return
        self._table.move(job, JobState.READY)
        for at, piece in enumerate(job.prepared.pieces()):
            self._scheduler.add(_item(job, self._table.queue(job, piece), piece, follows=at > 0))

    def _withdraw(self, job: ActiveJob) -> None:
        for key in self._table.withdraw(job):
            self._scheduler.remove(key)

    def _pass_turn(self, job: ActiveJob) -> None:
        """Let the next quarantined job go behind this one."""
        self.quarantine.leave(job)


def _item(job: ActiveJob, key: str, piece: Piece, *, follows: bool) -> Item:
    """Describe a piece as the scheduler sees it."""
    prepared, decodes = job.prepared, piece.phase == "decode"
    return Item(
        key=key,
        flow=job.flow,
        phase=piece.phase,
        units=piece.units,
        segment=prepared.adapter or None,
        head=prepared.head or None,
        # Token by token it would keep everybody else waiting.
        alone=job.redelivered and not decodes,
        deadline=None if decodes else job.claimed.deadline_ms / 1000,
        follows=follows,
    )
