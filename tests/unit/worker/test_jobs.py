"""The window: what a worker holds, and how much more it may take."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.streams.claims import CLAIM_ROOM, Claimed
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_worker.host.jobs import ActiveJob, JobTable
from fmplex_worker.protocol import OnePass

PASS = 1000


@dataclass(frozen=True, slots=True)
class Job(OnePass):
    units: int
    digest: str = "v"
    adapter: int = 0
    head: int = 0


def claimed(n: int, units: int = 100, cls: str = INTERACTIVE, deadline_ms: int = 10_000) -> Claimed:
    return Claimed(Flow("a", cls), f"{n}-0", f"job{n}", "in", "v", units, deadline_ms, b"x", 1)


def queue(w: JobTable, held: ActiveJob, units: int) -> str:
    """It is accepted, and its one piece waits for a pass; the key of that."""
    job = Job(units)
    w.ready(held, job)
    return w.queue(held, job.pieces()[0])


def window(passes: int) -> JobTable:
    return JobTable(PASS, passes, unpin=lambda version: None)


def test_an_empty_window_has_room_for_several_interactive_passes_and_one_offline() -> None:
    room = window(3).room()
    assert room[INTERACTIVE] > room[OFFLINE] > 0
    assert max(room.values()) <= CLAIM_ROOM


def test_a_full_window_has_no_room_until_jobs_finish() -> None:
    w = window(1)
    held = [w.add(claimed(i)) for i in range(10)]
    assert INTERACTIVE not in w.room()
    w.freed.clear()
    for h in held:
        w.finish(h)
    assert w.room()[INTERACTIVE] > 0
    assert w.freed.is_set()


def test_offline_work_takes_no_room_from_interactive() -> None:
    w = window(2)
    before = w.room()[INTERACTIVE]
    for i in range(50):
        w.add(claimed(i, cls=OFFLINE))
    assert w.room() == {INTERACTIVE: before}


def test_a_finished_job_stays_known_until_it_is_settled() -> None:
    """Otherwise a recovery would give it back, and it would run twice."""
    w = window(1)
    held = w.add(claimed(1))
    w.finish(held)
    assert [h.job.job for h in w] == ["job1"]
    w.drop(held)
    assert len(w) == 0


def test_unsettled_replies_bound_what_is_claimed() -> None:
    w = window(1)
    for i in range(8 * CLAIM_ROOM):
        w.finish(w.add(claimed(i)))
    assert w.room() == {}


def test_texts_that_wait_for_memory_do_not_keep_others_out() -> None:
    w = window(1)
    for i in range(8 * CLAIM_ROOM):
        w.set_aside(w.add(claimed(i)))
    assert w.room()


def test_a_job_past_its_deadline_is_reported_once_and_only_if_it_has_not_started() -> None:
    w = window(1)
    late = w.add(claimed(1, deadline_ms=5))
    running = w.add(claimed(2, deadline_ms=5))
    w.start(queue(w, running, 10))
    w.add(claimed(3, deadline_ms=50))
    assert w.expired(6) == [late]
    assert w.expired(6) == []


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["wait", "run", "drop"])), max_size=40)
)
def test_units_add_up_whatever_the_estimates_were(jobs: list[tuple[int, int, str]]) -> None:
    w = window(3)
    empty = w.room()
    waiting: list[ActiveJob] = []
    rest: list[ActiveJob] = []
    for i, (estimate, real, fate) in enumerate(jobs):
        held = w.add(claimed(i, units=estimate))
        if fate == "drop":
            w.drop(held)
            continue
        key = queue(w, held, real)
        if fate == "run":
            w.start(key)
            rest.append(held)
        else:
            waiting.append(held)
    assert w.waiting_units == sum(h.units for h in waiting)
    for held in rest:
        w.landed(held)
    for held in (*waiting, *rest):
        w.finish(held)
        w.drop(held)
    assert w.waiting_units == 0
    assert len(w) == 0
    assert bool(w.room()) == bool(empty)


def test_what_waits_for_its_version_takes_no_room_from_what_can_run() -> None:
    w = window(1)
    held = [w.add(claimed(i)) for i in range(10)]
    for h in held:
        w.park(h)
    assert w.room() == window(1).room()
    assert w.parked == 10
    for h in held[:5]:
        w.unpark(h)
    assert w.parked == 5
    assert 0 < w.room()[INTERACTIVE] < window(1).room()[INTERACTIVE]
    for h in held:  # answered, parked or not
        w.finish(h)
        w.drop(h)
    assert (w.parked, len(w), w.room()) == (0, 0, window(1).room())


@pytest.mark.parametrize("end", ["finish", "drop", "finish and drop"])
def test_a_pinned_job_lets_go_of_its_version_once_however_it_ends(end: str) -> None:
    let_go: list[str] = []
    w = JobTable(PASS, 1, unpin=let_go.append)
    held = w.add(claimed(1))
    held.pinned = True
    w.add(claimed(2))  # never pinned
    for step in end.split(" and "):
        getattr(w, step)(held)
    assert let_go == ["v"]


def test_a_running_pass_gives_up_its_room_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes while the window is full must not have to wait for the end of the pass."""
    clock = [100.0]
    monkeypatch.setattr("fmplex_worker.host.jobs.time.monotonic", lambda: clock[0])
    w = window(2)
    held = [w.add(claimed(i)) for i in range(20)]
    keys = [queue(w, h, 100) for h in held]
    assert INTERACTIVE not in w.room()
    for key in keys[:10]:
        w.start(key)
    w.begun(INTERACTIVE, PASS, expected_s=0.1, due=0.0)
    assert INTERACTIVE not in w.room()
    clock[0] += 0.05
    half = w.room()[INTERACTIVE]
    clock[0] += 5.0  # it takes longer than expected
    whole = w.room()[INTERACTIVE]
    assert 0 < half < whole
    for h in held[:10]:
        w.landed(h)
        w.finish(h)
    w.ended(5.05)
    assert w.room()[INTERACTIVE] == whole


def test_a_smaller_pass_budget_leaves_less_room() -> None:
    w = window(3)
    before = w.room()[INTERACTIVE]
    w.pass_units = PASS // 4
    assert 0 < w.room()[INTERACTIVE] < before


def test_interactive_jobs_without_hope_are_told_before_their_deadline_offline_ones_at_it() -> None:
    w = window(3)
    soon, later = w.add(claimed(1, deadline_ms=150)), w.add(claimed(2, deadline_ms=400))
    offline = w.add(claimed(3, cls=OFFLINE, deadline_ms=150))
    assert w.expired(100, ahead_ms=100) == [soon]
    assert w.expired(100, ahead_ms=100) == []
    assert w.expired(150) == [offline]
    assert w.expired(300, ahead_ms=100) == [later]


def test_cancelled_jobs_that_are_not_here_are_remembered_for_a_while() -> None:
    w = window(1)
    keys = [ActiveJob(claimed(n)).key for n in range(5000)]
    for key in keys:
        w.forgo(key)
    assert w.unwanted(w.add(claimed(4999)))
    assert w.unwanted(w.add(claimed(5000 - 4096)))
    assert not w.unwanted(w.add(claimed(0)))
    assert not w.unwanted(w.add(claimed(5000)))
