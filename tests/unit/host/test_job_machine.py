"""Every event of a job's life, in any order: after each, claim room, waiting units and memory are what the jobs add up to."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any
from unittest.mock import Mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fmplex_broker.errors import DeadlineExceeded, FmplexError, InvalidInput, JobFailed, PackageRejected
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, Flow
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.claim_room import ClaimRoom
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.jobs import JobTable
from fmplex_worker.host.landing import Landing
from fmplex_worker.host.passes import PassProgress
from fmplex_worker.protocol import Outcome, Work
from fmplex_worker.scheduling import CostModel, KvAdmission, Room, Scheduler, make_scheduler
from tests.unit.host.test_dispatch import MEMORY, PASS, Engine, Text, Whole

ROOM_TAKERS = {JobState.CLAIMED, JobState.PREPARING, JobState.READY, JobState.RUNNING}
UNPINNED = {JobState.CLAIMED, JobState.AWAITING_VERSION, JobState.ANSWERED, JobState.RELEASED}
LAST_MS = 10**9


_TEXTS = st.builds(
    lambda prompt, tokens: Text(prompt, min(tokens, MEMORY - prompt)), st.integers(1, 40), st.integers(1, 40)
)


class JobMachine(RuleBasedStateMachine):
    """One life after another of a worker, whose every event the test decides."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine()
        self.numbers = count()
        self.pins: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()  # replies and releases, by job
        self.now_ms = 0
        self.begin_life()

    def begin_life(self) -> None:
        self.cost = CostModel(PASS)
        self.scheduler: Scheduler = make_scheduler("drr", self.cost, PASS)
        self.passes = PassProgress()
        self.table = JobTable(ClaimRoom(PASS, 3, self.passes), self.pin, self.unpin)
        self.admission = KvAdmission(MEMORY, self.scheduler.weights)
        outbox = Mock()
        outbox.send = self.reply
        self.dispatcher = Dispatcher(self.engine, self.scheduler, self.table, self.admission, outbox)  # type: ignore[arg-type]
        self.landing = Landing(self.table, self.dispatcher, outbox, self.cost, ServerClock(), Mock())
        self.flights: deque[Flight] = deque()
        self.prepared: dict[str, Any] = {}  # job -> what the engine will make of it
        self.unsettled: list[ActiveJob] = []

    def pin(self, digest: str) -> None:
        self.pins[digest] += 1

    def unpin(self, digest: str) -> None:
        self.pins[digest] -= 1

    def reply(self, job: ActiveJob, output: object) -> None:
        self.ends[job.claimed.job] += 1
        self.unsettled.append(job)

    def jobs(self, *states: JobState) -> list[ActiveJob]:
        return [job for job in self.table if job.state in states]

    def pick(self, data: st.DataObject, *states: JobState) -> ActiveJob | None:
        found = self.jobs(*states)
        return data.draw(st.sampled_from(found)) if found else None

    # ---- the way in ----

    @rule(
        vfm=st.sampled_from("abc"), cls=st.sampled_from(CLASSES), way=st.sampled_from(["enters"] * 6 + ["here", "away"]),
        attempts=st.sampled_from([1, 1, 2]), deadline=st.sampled_from([LAST_MS, LAST_MS, LAST_MS, 50]),
        made=st.one_of(_TEXTS, _TEXTS, _TEXTS, _TEXTS, st.builds(Whole, st.integers(1, 40))),
        estimate=st.integers(1, 100),
    )  # fmt: skip
    def claimed(
        self, vfm: str, cls: str, way: str, attempts: int, deadline: int, made: Any, estimate: int
    ) -> None:  # fmt: skip
        n = next(self.numbers)
        claimed = Claimed(
            Flow(vfm, cls), f"{n}-0", f"job{n}", "in", f"{vfm}1", estimate, self.now_ms + deadline, b"x", attempts
        )
        self.prepared[claimed.job] = replace(made)
        job = self.table.add(claimed, 0.0)
        if way == "away":
            self.dispatcher.await_version(job)
            return
        self.dispatcher.prepare(job)
        if way == "enters":
            self.dispatcher.enter(job, self.prepared[claimed.job])

    @rule(data=st.data())
    def version_arrives(self, data: st.DataObject) -> None:
        if job := self.pick(data, JobState.AWAITING_VERSION):
            self.dispatcher.prepare(job)

    @rule(data=st.data())
    def version_is_refused(self, data: st.DataObject) -> None:
        if job := self.pick(data, JobState.AWAITING_VERSION):
            self.dispatcher.answer(job, PackageRejected("torn"))

    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        """It is to be prepared by itself, perhaps as it may have killed a worker."""
        job = self.pick(data, JobState.PREPARING)
        if job and self.dispatcher.quarantine.admit(job, lambda _: None):
            self.dispatcher.set_aside(job)
        elif job:
            self.dispatcher.quarantine.leave(job)

    @rule(data=st.data(), valid=st.sampled_from([True, True, True, False]))
    def prepared_(self, data: st.DataObject, valid: bool) -> None:
        if job := self.pick(data, JobState.PREPARING, JobState.AWAITING_PREPARATION):
            if valid:
                self.dispatcher.enter(job, self.prepared[job.claimed.job])
            else:
                self.dispatcher.answer(job, InvalidInput("input: no text", field="input"))

    # ---- passes ----

    @property
    def may_launch(self) -> bool:
        """As `PassLoop` has it: no pass is made behind one whose texts it would need."""
        return len(self.flights) < 2 and not (self.flights and self.flights[0].grows)

    @precondition(lambda self: self.may_launch)
    @rule()
    def launch(self) -> None:
        if (plan := self.scheduler.plan(0.0, Room(PASS, 4096))) is None:
            assert not self.jobs(JobState.READY), "what is ready can run"
            return
        work: dict[str, Work] = {}
        jobs = []
        for item in plan.items:
            job, piece = self.table.start(item.key)
            jobs.append(job)
            before = work[job.key].tokens if job.key in work else 0
            work[job.key] = Work(job.prepared, before + piece.tokens)
        done: Any = [*work.values()]
        self.flights.append(Flight(plan, jobs, done))

    def land(self, results: Callable[[Sequence[Work]], list[Any]]) -> None:
        flight = self.flights.popleft()
        work: Any = flight.outcome
        charges = self.scheduler.charge(flight.plan, 0.001)
        self.landing.land(flight, Outcome(0.001, results(work)), charges)

    @precondition(lambda self: bool(self.flights))
    @rule()
    def pass_ends(self) -> None:
        self.land(self.engine.step)

    @rule(passes=st.integers(1, 12))
    def passes_run(self, passes: int) -> None:
        """Several in a row, so that texts get somewhere."""
        for _ in range(passes):
            if self.flights:
                self.pass_ends()
            if self.may_launch:
                self.launch()
            self.states_say_what_is_true()

    @precondition(lambda self: bool(self.flights))
    @rule()
    def pass_fails(self) -> None:
        self.land(lambda work: [JobFailed("it broke") for _ in work])

    # ---- ends ----

    @rule(data=st.data())
    def cancelled(self, data: st.DataObject) -> None:
        if job := self.pick(data, *JobState):
            self.dispatcher.cancel(job.key)

    @rule(data=st.data())
    def answered_twice(self, data: st.DataObject) -> None:
        """A second reply is none."""
        if job := self.pick(data, JobState.ANSWERED, JobState.RELEASED):
            self.dispatcher.answer(job, FmplexError("too late"))

    @rule(ms=st.sampled_from([10, 60, 200]))
    def expired(self, ms: int) -> None:
        self.now_ms += ms
        for job in self.table.expired(self.now_ms, 20):
            self.dispatcher.answer(job, DeadlineExceeded("too late"))
        late = [job for job in self.table if not job.ended and job.state is not JobState.RUNNING]
        assert all(job.claimed.deadline_ms > self.now_ms for job in late)

    @rule()
    def given_back(self) -> None:
        for job in self.dispatcher.release_idle():
            self.ends[job.claimed.job] += 1
            assert job.state is JobState.RELEASED
        assert all(job.begun or job.state is JobState.RUNNING or job.ended for job in self.table)

    @rule()
    def settled(self) -> None:
        for job in self.unsettled:
            self.table.forget(job)
        self.unsettled.clear()

    @rule()
    def lease_lost(self) -> None:
        """What the jobs hold is given back behind the pass that may run yet, and nothing of them is left for the next life."""
        device = Mock()
        device.drop = self.engine.drop
        self.dispatcher.abandon(device)
        assert self.engine.texts == []
        self.pins.clear()  # `Residents.unpin_all`
        self.begin_life()

    # ---- what holds after each ----

    @invariant()
    def claim_room_is_that_of_jobs_that_have_not_begun(self) -> None:
        taken = dict.fromkeys(CLASSES, 0)
        for job in self.jobs(*ROOM_TAKERS):
            taken[job.flow.cls] += 0 if job.begun else job.units
        assert self.table.room.taken == taken
        by_flow = Counter[Flow]()
        for job in self.jobs(*ROOM_TAKERS):
            by_flow[job.flow] += 0 if job.begun else job.units
        large = {flow for flow, units in by_flow.items() if flow.cls == INTERACTIVE and units > 3 * PASS}
        assert self.table.room.overflowing == large

    @invariant()
    def waiting_units_are_those_of_the_pieces(self) -> None:
        waiting = dict.fromkeys(CLASSES, 0)
        for job in self.table:
            waiting[job.flow.cls] += sum(piece.units for piece in job.pieces.values())
        assert self.table.waiting == waiting
        assert len(self.scheduler) == sum(len(job.pieces) for job in self.table)

    @invariant()
    def memory_is_that_of_the_jobs_that_hold_it(self) -> None:
        assert self.engine.used <= self.admission.used_bytes <= MEMORY
        assert sum(self.admission.held_bytes.values()) == self.admission.used_bytes
        holders = {id(job.prepared) for job in self.table if not job.ended and hasattr(job, "prepared")}
        assert all(id(text) in holders for text in self.engine.texts), "nobody who has ended holds any"
        for job in self.jobs(JobState.READY, JobState.RUNNING):
            assert self.engine_has_room_for(job)

    def engine_has_room_for(self, job: ActiveJob) -> bool:
        needs = job.prepared.memory
        return not needs or job.evicted or self.admission.holds(job.key, needs)

    @invariant()
    def states_say_what_is_true(self) -> None:
        in_pass = Counter(job.key for flight in self.flights for job in flight.jobs)
        for job in self.table:
            assert (job.state is JobState.RUNNING) == (in_pass[job.key] > 0)
            assert job.in_pass == in_pass[job.key]
            assert bool(job.pieces) <= (job.state in {JobState.READY, JobState.RUNNING})
            assert (job.state is JobState.READY) <= bool(job.pieces)
            assert job.cancelled is None or job.ended or job.state is JobState.RUNNING, "it ends with its pass"
        for state in JobState:
            assert self.table.count(state) == len(self.jobs(state))

    @invariant()
    def versions_are_pinned_by_the_jobs_that_need_them(self) -> None:
        needed = Counter(job.digest for job in self.table if job.state not in UNPINNED)
        assert +self.pins == needed

    @invariant()
    def nobody_ends_twice(self) -> None:
        assert all(n == 1 for n in self.ends.values())

    def teardown(self) -> None:
        """Everybody ends, and nothing is held."""
        for _ in range(5000):
            for job in self.jobs(JobState.AWAITING_VERSION, JobState.CLAIMED):
                self.dispatcher.prepare(job)
            for job in self.jobs(JobState.PREPARING, JobState.AWAITING_PREPARATION):
                self.dispatcher.enter(job, self.prepared[job.claimed.job])
            if self.flights:
                self.land(self.engine.step)
            self.settled()
            if not len(self.table):
                break
            if self.may_launch:
                self.launch()
        assert len(self.table) == 0, f"left: {Counter(job.state for job in self.table)}"
        self.claim_room_is_that_of_jobs_that_have_not_begun()
        assert (self.admission.used_bytes, self.engine.texts, +self.pins) == (0, [], Counter())


TestJobMachine = JobMachine.TestCase
TestJobMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
