"""The job table: what a worker holds, and how much more it may take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.streams.claims import CLAIM_ROOM
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.job_state import ENDS, TRANSITIONS, JobState
from tests.unit.host.tables import PASS, Encode, Table, claimed

NOW = 100.0


def test_an_empty_table_has_room_for_several_interactive_passes_and_two_offline() -> None:
    room = Table(3).claimable(NOW)
    assert room[INTERACTIVE] > room[OFFLINE] > 0
    assert max(room.values()) <= CLAIM_ROOM


def test_a_full_table_has_no_room_until_jobs_finish() -> None:
    t = Table(1)
    jobs = [t.take(claimed(i)) for i in range(10)]
    assert INTERACTIVE not in t.claimable(NOW)
    t.freed.clear()
    for job in jobs:
        t.finish(job)
    assert t.claimable(NOW)[INTERACTIVE] > 0
    assert t.freed.is_set()


def test_offline_work_takes_no_room_from_interactive() -> None:
    t = Table(2)
    before = t.claimable(NOW)[INTERACTIVE]
    for i in range(50):
        t.take(claimed(i, cls=OFFLINE))
    assert t.claimable(NOW) == {INTERACTIVE: before}


def test_a_finished_job_stays_known_until_it_is_settled() -> None:
    """Otherwise a recovery would give it back, and it would run twice."""
    t = Table(1)
    job = t.take(claimed(1))
    t.finish(job)
    assert [j.claimed.job for j in t] == ["job1"]
    t.drop(job)
    assert len(t) == 0


def test_unsettled_replies_bound_what_is_claimed() -> None:
    t = Table(1)
    for i in range(8 * CLAIM_ROOM):
        t.finish(t.take(claimed(i)))
    assert t.claimable(NOW) == {}


def test_texts_that_wait_for_memory_do_not_keep_others_out() -> None:
    t = Table(1)
    for i in range(8 * CLAIM_ROOM):
        job = t.take(claimed(i))
        t.move(job, JobState.PREPARING)
        t.move(job, JobState.AWAITING_MEMORY)
    assert t.claimable(NOW)


def test_a_job_past_its_deadline_is_reported_once_and_only_if_it_is_in_no_pass() -> None:
    t = Table(1)
    late = t.take(claimed(1, deadline_ms=5))
    running = t.take(claimed(2, deadline_ms=5))
    t.start(t.ready(running, 10))
    t.take(claimed(3, deadline_ms=50))
    assert t.expired(6) == [late]
    assert t.expired(6) == []


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["wait", "run", "drop"])), max_size=40)
)
def test_units_add_up_whatever_the_estimates_were(jobs: list[tuple[int, int, str]]) -> None:
    t = Table(3)
    empty = t.claimable(NOW)
    waiting: list[ActiveJob] = []
    rest: list[ActiveJob] = []
    for i, (estimate, real, fate) in enumerate(jobs):
        job = t.take(claimed(i, units=estimate))
        if fate == "drop":
            t.drop(job)
            continue
        key = t.ready(job, real)
        if fate == "run":
            t.start(key)
            rest.append(job)
        else:
            waiting.append(job)
    assert t.waiting_units == sum(job.units for job in waiting)
    for job in (*waiting, *rest):
        t.finish(job)
        t.drop(job)
    assert t.waiting_units == 0
    assert len(t) == 0
    assert t.room._by_flow == {}, "flows without jobs are forgotten"
    assert bool(t.claimable(NOW)) == bool(empty)


def test_a_flow_that_fills_the_window_is_passed_over_but_not_where_arrival_decides() -> None:
    fair, arrival = Table(2), Table(2, order="arrival")
    for table in (fair, arrival):
        table.take(claimed(1, units=2 * PASS + 1))
    assert fair.room.overflowing
    assert fair.claimable(NOW)[INTERACTIVE]
    assert not arrival.room.overflowing
    assert INTERACTIVE not in arrival.claimable(NOW), "who comes later waits, as first in, first out has it"


def test_what_waits_for_its_version_takes_no_room_from_what_can_run() -> None:
    t = Table(1)
    jobs = [t.take(claimed(i)) for i in range(10)]
    for job in jobs:
        t.move(job, JobState.AWAITING_VERSION)
    assert t.claimable(NOW) == Table(1).claimable(NOW)
    assert t.count(JobState.AWAITING_VERSION) == 10
    for job in jobs[:5]:
        t.move(job, JobState.PREPARING)
    assert t.count(JobState.AWAITING_VERSION) == 5
    assert 0 < t.claimable(NOW)[INTERACTIVE] < Table(1).claimable(NOW)[INTERACTIVE]
    for job in jobs:  # answered, whether they wait or not
        t.finish(job)
        t.drop(job)
    left = (t.count(JobState.AWAITING_VERSION), len(t), t.claimable(NOW))
    assert left == (0, 0, Table(1).claimable(NOW))


@pytest.mark.parametrize("end", ["finish", "drop", "finish and drop"])
def test_a_pinned_job_lets_go_of_its_version_once_however_it_ends(end: str) -> None:
    let_go: list[str] = []
    t = Table(1, unpin=let_go.append)
    job = t.take(claimed(1))
    t.move(job, JobState.PREPARING)
    t.take(claimed(2))  # never pinned
    for step in end.split(" and "):
        getattr(t, step)(job)
    assert let_go == ["v"]


def test_a_running_pass_gives_up_its_room_as_it_runs() -> None:
    """Who comes while the window is full must not have to wait for the end of the pass."""
    t = Table(2)
    jobs = [t.take(claimed(i)) for i in range(20)]
    keys = [t.ready(job, 100) for job in jobs]
    assert INTERACTIVE not in t.claimable(NOW)
    for key in keys[:10]:
        t.start(key)
    t.passes.begin({INTERACTIVE: PASS}, expected_s=0.1, due=0.0, now=NOW)
    assert INTERACTIVE not in t.claimable(NOW)
    half = t.claimable(NOW + 0.05)[INTERACTIVE]
    whole = t.claimable(NOW + 5.05)[INTERACTIVE]  # it takes longer than expected
    assert 0 < half < whole
    for job in jobs[:10]:
        t.finish(job)
    t.passes.end(5.05, NOW + 5.05)
    assert t.claimable(NOW + 5.05)[INTERACTIVE] == whole


def test_a_pass_of_both_classes_gives_up_the_room_of_each() -> None:
    t = Table(2)
    t.passes.begin({INTERACTIVE: 300, OFFLINE: 100}, expected_s=0.1, due=0.0, now=NOW)
    assert [t.passes.done_units(cls, NOW + 0.05) for cls in (INTERACTIVE, OFFLINE)] == pytest.approx([150, 50])
    t.passes.end(0.1, NOW + 0.1)
    assert [t.passes.done_units(cls, NOW + 0.1) for cls in (INTERACTIVE, OFFLINE)] == [0, 0]


def test_a_smaller_pass_budget_leaves_less_room() -> None:
    t = Table(3)
    before = t.claimable(NOW)[INTERACTIVE]
    t.room.pass_units = PASS // 4
    assert 0 < t.claimable(NOW)[INTERACTIVE] < before


def test_interactive_jobs_without_hope_are_told_before_their_deadline_offline_ones_at_it() -> None:
    t = Table(3)
    soon, later = t.take(claimed(1, deadline_ms=150)), t.take(claimed(2, deadline_ms=400))
    offline = t.take(claimed(3, cls=OFFLINE, deadline_ms=150))
    assert t.expired(100, ahead_ms=100) == [soon]
    assert t.expired(100, ahead_ms=100) == []
    assert t.expired(150) == [offline]
    assert t.expired(300, ahead_ms=100) == [later]


def test_cancelled_jobs_that_are_not_here_are_remembered_for_a_while() -> None:
    t = Table(1)
    keys = [ActiveJob(claimed(n), 0.0).key for n in range(5000)]
    for key in keys:
        t.forgo(key)
    assert t.unwanted(t.take(claimed(4999)))
    assert t.unwanted(t.take(claimed(5000 - 4096)))
    assert not t.unwanted(t.take(claimed(0)))
    assert not t.unwanted(t.take(claimed(5000)))


def test_a_job_in_a_pass_stays_running_until_that_has_landed() -> None:
    """A reply beside the pass would be a second one; a release would make it run twice."""
    t = Table(1)
    job = t.take(claimed(1))
    t.start(t.ready(job, 10))
    for state in JobState:
        with pytest.raises(RuntimeError, match="from RUNNING to"):
            t.move(job, state)
    t.land(job, 0.0)
    t.move(job, JobState.ANSWERED)


def test_of_a_job_that_cannot_run_no_piece_waits() -> None:
    """The scheduler would put it into a pass all the same."""
    t = Table(1)
    job = t.take(claimed(1))
    t.ready(job, 10)
    for state in (JobState.AWAITING_MEMORY, JobState.ANSWERED, JobState.RELEASED):
        with pytest.raises(RuntimeError, match="from READY to"):
            t.move(job, state)
    t.withdraw(job)
    t.move(job, JobState.AWAITING_MEMORY)


@pytest.mark.parametrize("end", sorted(ENDS, key=lambda state: state.name))
def test_what_has_ended_stays_so(end: JobState) -> None:
    t = Table(1)
    job = t.take(claimed(1))
    t.move(job, end)
    assert TRANSITIONS[end] == {}
    with pytest.raises(RuntimeError, match="job1 cannot go from"):
        t.move(job, JobState.PREPARING)


def test_from_its_first_pass_on_a_job_takes_no_room() -> None:
    t = Table(1)
    job = t.take(claimed(1))
    t.start(t.ready(job, 300))
    assert t.room.taken[INTERACTIVE] == 300
    t.land(job, 1.0)
    assert t.room.taken[INTERACTIVE] == 0
    t.move(job, JobState.READY)
    t.start(t.queue(job, Encode(300).pieces()[0]))
    t.land(job, 2.0)
    assert (t.room.taken[INTERACTIVE], job.wait_ms) == (0, 1.0)
    t.finish(job)
    assert t.room.taken[INTERACTIVE] == 0
