"""Jobs that hold memory between passes, from window to scheduler and back: everybody ends, and everything is given back.

A loop in place of the device task does to them what that does, in an order that the test decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_broker.errors import JobFailed
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.wire.messages import CLASSES, INTERACTIVE, OFFLINE, Flow
from fmplex_broker.wire.streaming import Delta
from fmplex_worker import protocol
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.clock import ServerClock
from fmplex_worker.host.dispatch import Dispatcher
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.job_state import JobState
from fmplex_worker.host.landing import Landing
from fmplex_worker.protocol import Kind, Outcome, Piece, Progress, Work
from fmplex_worker.scheduling import CostModel, KvAdmission, Room, Scheduler, make_scheduler
from tests.unit.host.tables import Table

PASS = 32  # units
MEMORY = 64  # bytes, of which a token takes one
CHUNK = 8  # tokens of a prompt that go into a pass together


def capacity(tokens: int) -> int:
    """Of the smallest slab that holds them: 4, 6, 8, 12, 16, …"""
    slab = 4
    while slab < tokens:
        slab += slab // 2 if slab & (slab - 1) == 0 else slab // 3
    return slab


@dataclass(eq=False)
class Text:
    """A job that generates `tokens` after its `prompt`. At `fails` tokens it ends with an error. With two `attempts` it may have
    killed a worker."""

    prompt: int
    tokens: int
    fails: int = -1
    attempts: int = 1
    digest: str = "v"
    adapter: int = 0
    head: int = 0
    generated: int = 0
    computed: int = 0
    slab: int = 0
    over: bool = False
    kind: Kind = "generate"

    @property
    def length(self) -> int:
        return self.prompt + self.generated

    @property
    def memory(self) -> int:
        return capacity(self.length)

    @property
    def units(self) -> int:
        return sum(piece.units for piece in self.pieces())

    def pieces(self) -> list[Piece]:
        left = self.length - self.computed
        if self.over:
            return []
        if left == 1:
            return [Piece("decode", 1, 1 + self.computed // 16)]
        sizes = [CHUNK] * (left // CHUNK) + ([left % CHUNK] if left % CHUNK else [])
        return [Piece("prefill", n, n) for n in sizes]


@dataclass(eq=False)
class Whole:
    """A job that is done with one pass, as an encoder's are."""

    units: int
    attempts: int = 1
    digest: str = "v"
    adapter: int = 0
    head: int = 0
    memory: int = 0
    kind: Kind = "encode"

    def pieces(self) -> list[Piece]:
        return [Piece("encode", self.units, self.units)]


@dataclass
class Engine:
    """Gives out as much memory as it is asked for, and sees to it that it is never asked for too much. `known`: tokens of a
    prompt that need not be computed when it runs first, or again."""

    known: int = 0
    texts: list[Text] = field(default_factory=list)  # that hold memory

    @property
    def capacity(self) -> protocol.Capacity:
        return protocol.Capacity(PASS, MEMORY, 0)

    @property
    def used(self) -> int:
        return sum(text.slab for text in self.texts)

    def drop(self, prepared: Any) -> None:
        if isinstance(prepared, Text):
            prepared.slab = prepared.computed = 0
            self.texts = [text for text in self.texts if text is not prepared]

    def step(self, work: Sequence[Work]) -> list[Any]:
        return [self._advance(job, tokens) if isinstance(job, Text) else "done" for job, tokens in work]

    def _advance(self, text: Text, tokens: int) -> Any:
        assert not text.over, "it has ended"
        if not text.slab:
            self.texts.append(text)
            text.computed = min(self.known, text.length - 1)
        text.slab = max(text.slab, text.memory)
        assert self.used <= MEMORY, "more than there is"
        text.computed = min(text.computed + tokens, text.length)
        if text.computed < text.length:
            return Progress(None)
        text.generated += 1
        if text.generated == text.fails:
            text.over = True
            return JobFailed("its grammar broke")
        if text.generated == text.tokens:
            text.over = True
            self.drop(text)
            return "text"
        return Progress(Delta(text.generated - 1, "x", text.generated - 1, 1))


class Outbox:
    """Keeps what is answered, and in which pass the first word of each text came; settles at once."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def stream(self, job: ActiveJob, news: Delta) -> None:
        self._loop.firsts.setdefault(number_of(job), self._loop.passes)

    def send(self, job: ActiveJob, output: Any) -> None:
        number = number_of(job)
        self._loop.answers[number] = output
        self._loop.ended.append(job)
        del self._loop.held[number]


def number_of(job: ActiveJob) -> int:
    return int(job.claimed.job.removeprefix("job"))


class Loop:
    """Intake, pass loop and outbox in one, without threads and clocks."""

    def __init__(self, policy: str, weights: dict[str, float] | None = None, known: int = 0) -> None:
        self.cost = CostModel(PASS)
        self.scheduler: Scheduler = make_scheduler(policy, self.cost, PASS)
        for vfm, weight in (weights or {}).items():
            self.scheduler.set_weight(vfm, weight)
        self.engine = Engine(known)
        self.unpinned: list[str] = []
        self.table = Table(3, self.unpinned.append, PASS)
        self.admission = KvAdmission(MEMORY, self.scheduler.weights)
        outbox: Any = Outbox(self)
        self.dispatcher = Dispatcher(self.engine, self.scheduler, self.table, self.admission, outbox)  # type: ignore[arg-type]
        self.landing = Landing(self.table, self.dispatcher, outbox, self.cost, ServerClock(), Mock())
        self.queue: list[tuple[Flow, Any, int]] = []  # sent, and not claimed yet
        self.held: dict[int, ActiveJob] = {}
        self.ended: list[ActiveJob] = []  # answered, and not settled yet
        self.answers: dict[int, Any] = {}
        self.firsts: dict[int, int] = {}  # pass in which the first token of each came
        self.passes = 0
        self.in_pass: list[dict[str, int]] = []  # vFM -> items, of each pass
        self.flights: deque[Flight] = deque()
        self.numbers = count()

    # ---- what happens to it ----

    def send(self, vfm: str, job: Any, cls: str = INTERACTIVE) -> int:
        number = next(self.numbers)
        self.queue.append((Flow(vfm, cls), job, number))
        return number

    def claim(self) -> None:
        """As many as there is room for, none of vFMs whose jobs wait for memory already."""
        room = self.table.claimable(0.0)
        for flow, job, number in list(self.queue):
            if room.get(flow.cls, 0) > 0 and flow not in self.dispatcher.crowded:
                self.queue.remove((flow, job, number))
                room[flow.cls] -= 1
                self.enter(flow, job, number)

    def enter(self, flow: Flow, prepared: Any, number: int) -> None:
        claimed = Claimed(flow, f"{number}-0", f"job{number}", "in", "v", 4, 10**9, b"x", prepared.attempts)
        job = self.held[number] = self.table.take(claimed)
        self.dispatcher.prepare(job)
        self.dispatcher.enter(job, prepared)

    def cancel(self, number: int) -> None:
        if (job := self.held.get(number)) is not None:
            self.dispatcher.cancel(job.key)
            self.settle()

    def give_back(self) -> None:
        """A drain: what has not begun is not ours any more."""
        for job in self.dispatcher.release_idle():
            self.answers[number_of(job)] = "given back"
            del self.held[number_of(job)]

    def launch(self) -> bool:
        """A pass begins, if one may be made now and there is something for it."""
        if len(self.flights) == 2 or (self.flights and self.flights[0].grows):
            return False
        plan = self.scheduler.plan(0.0, Room(PASS, 4096))
        if plan is None:
            return False
        started = [self.table.start(item.key) for item in plan.items]
        assert len({job.key for job, _ in started if job.redelivered}) <= 1, "a death could be any one's fault"
        work: dict[str, Work] = {}
        for job, piece in started:
            before = work[job.key].tokens if job.key in work else 0
            work[job.key] = Work(job.prepared, before + piece.tokens)
        outcome: Any = [*work.values()]  # here, what is to be done
        self.flights.append(Flight(plan, [job for job, _ in started], outcome))
        return True

    def land(self, lost: bool = False) -> bool:
        """The pass that runs ends, if one does; `lost`: with an error for every job."""
        if not self.flights:
            return False
        flight = self.flights.popleft()
        self._has_memory(flight)
        work: Any = flight.outcome
        results = [JobFailed("the pass failed")] * len(work) if lost else self.engine.step(work)
        self.passes += 1
        here = [job.flow.vfm for job in {job.key: job for job in flight.jobs}.values()]
        self.in_pass.append({vfm: here.count(vfm) for vfm in here})
        charges = self.scheduler.charge(flight.plan, 0.001)
        self.landing.land(flight, Outcome(0.001, results), charges)
        self.settle()
        return True

    def settle(self) -> None:
        for job in self.ended:
            self.table.forget(job)
        self.ended.clear()

    def _has_memory(self, flight: Flight) -> None:
        needs: dict[Flow, int] = {}
        for job in {job.key: job for job in flight.jobs}.values():
            needs[job.flow] = needs.get(job.flow, 0) + job.prepared.memory
        held_bytes = self.admission.held_bytes
        assert all(bytes_ <= held_bytes.get(flow, 0) for flow, bytes_ in needs.items()), (
            "a job without memory is in a pass"
        )

    # ---- all of it ----

    def turn(self) -> bool:
        """As the worker goes on by itself; False when there is nothing left that it could do."""
        self.claim()
        return self.launch() or self.land()

    def finish(self, most: int = 20_000) -> None:
        """Until all is done."""
        for _ in range(most):
            if not self.turn():
                break
        assert not self.held, f"{len(self.held)} jobs wait for ever, of which {self.admission.waiting_flows} for memory"
        assert not self.queue, "some are never claimed"
        self.holds_nothing()

    def holds_nothing(self) -> None:
        assert (len(self.scheduler), len(self.table)) == (0, 0)
        assert (self.table.waiting_units, self.table.count(JobState.RUNNING)) == (0, 0)
        assert self.table.room.taken == dict.fromkeys(CLASSES, 0), "room is there again"
        assert (self.admission.used_bytes, self.admission.held_bytes, self.admission.waiting_flows) == (0, {}, [])
        assert (self.engine.used, self.engine.texts) == (0, [])
        assert self.dispatcher.memory.held == {}
        device = Mock()
        self.dispatcher.abandon(device)
        assert not device.drop.called, "nobody holds any memory"


# ---- everything at once ----

_VFMS = st.sampled_from("abc")
_ATTEMPTS = st.sampled_from([1, 1, 1, 2])
_TEXTS = st.builds(
    lambda prompt, tokens, fails, attempts: Text(prompt, min(tokens, MEMORY - prompt), fails, attempts),
    st.integers(1, 40), st.integers(1, 40), st.one_of(st.just(-1), st.integers(1, 10)), _ATTEMPTS,
)  # fmt: skip
_JOBS = st.one_of(_TEXTS, _TEXTS, st.builds(Whole, st.integers(1, 40), _ATTEMPTS))
_ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), _VFMS, _JOBS, st.sampled_from(CLASSES)),
        st.tuples(st.sampled_from(["claim", "launch", "land", "turn", "give_back"])),
        st.tuples(st.sampled_from(["launch", "land", "turn"])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=80,
)  # fmt: skip


@pytest.mark.parametrize("policy", ["drr", "fifo"])
@given(
    acts=_ACTS, weights=st.dictionaries(_VFMS, st.sampled_from([0.25, 1.0, 4.0])), known=st.sampled_from([0, 0, 8]),
)  # fmt: skip
@settings(deadline=None)
def test_whatever_happens_everybody_ends_and_everything_is_given_back(
    policy: str, acts: list[Any], weights: dict[str, float], known: int
) -> None:
    loop = Loop(policy, weights, known)
    sent = 0
    for name, *args in acts:
        getattr(loop, name)(*args)
        sent += name == "send"
    loop.finish()
    assert sorted(loop.answers) == list(range(sent)), "each has one answer"


@pytest.mark.parametrize("policy", ["drr", "fifo"])
@given(jobs=st.lists(st.tuples(_VFMS, _TEXTS), min_size=1, max_size=30))
@settings(deadline=None)
def test_texts_are_whole_however_often_they_lost_their_memory(policy: str, jobs: list[tuple[str, Text]]) -> None:
    loop = Loop(policy)
    for vfm, text in jobs:
        loop.send(vfm, text)
    loop.finish()
    for number, (_, text) in enumerate(jobs):
        if 0 < text.fails <= text.tokens:
            assert isinstance(loop.answers[number], JobFailed)
        else:
            assert (loop.answers[number], text.generated) == ("text", text.tokens)


# ---- who waits for whom ----


def _busy(essays: int, prompt: int = 4, tokens: int = 44) -> Loop:
    """A worker whose memory is full of one vFM's long texts."""
    loop = Loop("drr")
    for _ in range(essays):
        loop.send("essays", Text(prompt, tokens))
    while loop.passes < 30:
        assert loop.turn()
    assert loop.admission.waiting_flows, "there is too little memory for all"
    return loop


def test_a_chat_does_not_wait_for_a_seat_behind_essays() -> None:
    """Each gets one at once, and then a token a pass."""
    loop = _busy(40)
    for _ in range(5):
        sent, begun = loop.send("chat", Text(5, 10)), loop.passes
        while sent not in loop.answers:
            assert loop.turn()
        assert loop.firsts[sent] - begun <= 2, "the pass that runs, and its own"
        assert loop.passes - begun <= 2 + 10
    assert any(held.flow.vfm == "essays" for held in loop.held.values()), "they were still at it"
    loop.finish()


def test_a_job_that_needs_no_memory_does_not_wait_for_any() -> None:
    loop = _busy(40)
    for _ in range(5):
        sent, begun = loop.send("vectors", Whole(8)), loop.passes
        while sent not in loop.answers:
            assert loop.turn()
        assert loop.passes - begun <= 2
    loop.finish()


def test_many_rows_do_not_hold_the_pass() -> None:
    """More rows of one vFM than a pass takes: whoever has one row is in every pass."""
    loop = Loop("drr")
    for _ in range(16):
        loop.send("many", Text(1, 3))  # 16 x 4 bytes: all of them have their seats
    for _ in range(200):
        loop.send("many", Text(1, 3))
    sent, begun = loop.send("one", Text(2, 30)), loop.passes
    while sent not in loop.answers:
        assert loop.turn()
    assert loop.passes - begun <= 2 + 30
    loop.finish()


@pytest.mark.parametrize("policy", ["drr", "fifo"])
def test_texts_take_turns(policy: str) -> None:
    """Twice as many of two vFMs as a pass takes: none stands still while others go on."""
    loop = Loop(policy)
    loop.scheduler.budget = 4
    texts = [Text(1, 7) for _ in range(8)]  # 8 x 8 bytes: all have their seats
    for i, text in enumerate(texts):
        loop.send("ab"[i % 2], text)
    last: dict[int, tuple[int, int]] = {}  # text -> its tokens, and in which pass the last one came
    while len(loop.answers) < len(texts):
        assert loop.turn()
        for i, text in enumerate(texts):
            if text.generated and last.get(i, (0, 0))[0] != text.generated:
                assert i not in last or loop.passes - last[i][1] <= 4, (
                    "the pass before, two for all, and one for newcomers"
                )
                last[i] = text.generated, loop.passes
    loop.finish()


def test_a_prompt_begins_beside_texts_of_its_own_vfm() -> None:
    """They take turns with it: it does not wait until some have ended, nor do they wait for all of it."""
    loop = Loop("drr")
    loop.scheduler.budget = 12
    for _ in range(8):
        loop.send("a", Text(1, 4))
    for _ in range(6):
        loop.turn()
    sent, begun = loop.send("a", Text(30, 4)), loop.passes
    while sent not in loop.firsts and not loop.answers:
        assert loop.turn()
    assert any(getattr(held.prepared, "computed", 0) for held in loop.held.values())
    while sent not in loop.answers:
        assert loop.turn()
    assert loop.passes - begun < 40
    loop.finish()


def test_offline_texts_do_not_keep_their_own_vfms_chats_out() -> None:
    loop = Loop("drr")
    for _ in range(8):
        loop.send("a", Text(4, 44), OFFLINE)
    while not loop.admission.waiting_flows:
        assert loop.turn()
    for _ in range(5):
        sent, begun = loop.send("a", Text(5, 10)), loop.passes
        while sent not in loop.answers:
            assert loop.turn()
        assert loop.firsts[sent] - begun <= 3
    loop.finish()


def test_the_oldest_text_of_a_vfm_goes_on_while_newer_ones_make_room() -> None:
    """Two texts that cannot both grow to their ends: neither waits for the other for ever, and the older one never begins
    again."""
    loop = Loop("drr")
    texts = [Text(4, 56), Text(4, 56)]
    for text in texts:
        loop.send("a", text)
    before = 0
    while 0 not in loop.answers:
        assert loop.turn()
        assert texts[0].over or texts[0].computed >= before, "it was made to begin again"
        before = texts[0].computed
    loop.finish()


def test_a_redelivered_job_is_prefilled_alone_and_then_shares_passes() -> None:
    """It may have killed the worker it ran on; token by token, though, it would keep everybody else waiting."""
    loop = Loop("drr")
    other = loop.send("a", Text(4, 20))
    loop.claim()
    loop.enter(Flow("b", INTERACTIVE), Text(20, 10, attempts=2), next(loop.numbers))
    again = number_of(next(held for held in loop.held.values() if held.redelivered))
    while again not in loop.firsts:
        assert loop.turn()
        assert not (loop.in_pass and {"a", "b"} <= loop.in_pass[-1].keys()), "somebody shares its prefill"
    begun = loop.passes
    while again not in loop.answers:
        assert loop.turn()
    assert loop.passes - begun <= 12, "a token a pass"
    assert other in loop.firsts
    loop.finish()


def test_redelivered_texts_take_turns_and_share_passes_with_others() -> None:
    """What they decoded together may have killed the worker; which one it was shows only when they are in passes without each
    other."""
    loop = Loop("drr")
    again = [loop.send("a", Text(1, 10, attempts=2)) for _ in range(3)]
    other = loop.send("a", Text(4, 20))
    begun = loop.passes
    while other not in loop.answers:
        assert loop.turn()
    assert loop.passes - begun <= 30, "it waits for none of them"
    while not any(number in loop.answers for number in again):
        assert loop.turn()
    assert min(loop.held[n].prepared.generated for n in again if n in loop.held) >= 8, "nor they for each other"  # type: ignore[attr-defined]
    loop.finish()
    assert loop.passes - begun <= 40


def test_offline_texts_go_on_in_what_interactive_ones_leave() -> None:
    loop = Loop("drr")
    slow = loop.send("batch", Text(4, 20), OFFLINE)
    for _ in range(10):
        loop.send("chat", Text(4, 20))
    loop.finish()
    assert loop.answers[slow] == "text"


@pytest.mark.parametrize("when", range(40))
def test_a_text_cancelled_at_any_time_is_in_no_later_pass(when: int) -> None:
    """Whether it waits for memory, is in its prompt, grows, or has just been made to leave."""
    loop = _busy(8)
    victim = loop.send("victim", Text(30, 20))
    for _ in range(when):
        loop.turn()
    flying = {held.key for flight in loop.flights for held in flight.jobs}
    held = loop.held.get(victim)
    loop.cancel(victim)
    if victim not in loop.answers:
        assert held is None or held.key in flying, "only a pass that runs may go on with it"
        loop.queue = [entry for entry in loop.queue if entry[2] != victim]
        while loop.flights:
            loop.land()
    assert Flow("victim", INTERACTIVE) not in loop.admission.held_bytes
    assert victim in loop.answers or held is None
    loop.finish()


def test_a_piece_that_a_cached_prefix_made_needless_does_not_run_while_its_text_waits_for_memory() -> None:
    """An offline text, of which a second chunk is queued, has drawn its first token and outgrown its slab; nobody gives way."""
    loop = Loop("drr", known=8)
    loop.scheduler._offline_slice = 1e-9  # type: ignore[attr-defined]  # one chunk an offline pass
    loop.send("x", Text(33, 15))
    loop.claim()
    while not loop.held[0].prepared.generated:  # type: ignore[attr-defined]
        loop.launch()
        loop.land()
    grows = loop.send("o", Text(16, 4), OFFLINE)  # the memory is full now; of its two chunks 8 tokens are cached
    loop.claim()
    loop.send("x", Text(20, 2))  # interactive, of a flow that holds as much already: nobody gives way for it
    loop.claim()
    for _ in range(3):
        loop.send("w", Whole(PASS))
    waited = False
    while loop.held:
        loop.scheduler._arrears = 1.0  # type: ignore[attr-defined]  # the offline class is due
        assert loop.turn()
        waited |= grows in loop.held and loop.held[grows].state is JobState.AWAITING_MEMORY and loop.held[grows].begun
    assert waited
    loop.finish()
