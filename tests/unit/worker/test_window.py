"""The window: what a worker holds, and how much more it may take."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.messages import INTERACTIVE, OFFLINE, Flow
from fmplex_broker.streams.consumer import CLAIM_ROOM, Claimed
from fmplex_worker.window import Held, Window

PASS = 1000


@dataclass(frozen=True, slots=True)
class Job:
    units: int
    digest: str = "v"
    adapter: int = 0
    head: int = 0


def claimed(n: int, units: int = 100, cls: str = INTERACTIVE, deadline_ms: int = 10_000) -> Claimed:
    return Claimed(Flow("a", cls), f"{n}-0", f"job{n}", "in", "v", units, deadline_ms, b"x", 1)


def test_an_empty_window_has_room_for_several_interactive_passes_and_one_offline() -> None:
    room = Window(PASS, passes=3).room()
    assert room[INTERACTIVE] > room[OFFLINE] > 0
    assert max(room.values()) <= CLAIM_ROOM


def test_a_full_window_has_no_room_until_jobs_finish() -> None:
    window = Window(PASS, passes=1)
    held = [window.add(claimed(i)) for i in range(10)]
    assert INTERACTIVE not in window.room()
    window.freed.clear()
    for h in held:
        window.finish(h)
    assert window.room()[INTERACTIVE] > 0
    assert window.freed.is_set()


def test_offline_work_takes_no_room_from_interactive() -> None:
    window = Window(PASS, passes=2)
    before = window.room()[INTERACTIVE]
    for i in range(50):
        window.add(claimed(i, cls=OFFLINE))
    assert window.room() == {INTERACTIVE: before}


def test_a_finished_job_stays_known_until_it_is_settled() -> None:
    """Otherwise a recovery would give it back, and it would run twice."""
    window = Window(PASS, passes=1)
    held = window.add(claimed(1))
    window.finish(held)
    assert [h.job.job for h in window] == ["job1"]
    window.drop(held)
    assert len(window) == 0


def test_unsettled_replies_bound_what_is_claimed() -> None:
    window = Window(PASS, passes=1)
    for i in range(8 * CLAIM_ROOM):
        window.finish(window.add(claimed(i)))
    assert window.room() == {}


def test_a_job_past_its_deadline_is_reported_once_and_only_if_it_has_not_started() -> None:
    window = Window(PASS, passes=1)
    late = window.add(claimed(1, deadline_ms=5))
    running = window.add(claimed(2, deadline_ms=5))
    window.ready(running, Job(10))
    window.start(running.key)
    window.add(claimed(3, deadline_ms=50))
    assert window.expired(6) == [late]
    assert window.expired(6) == []


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500), st.sampled_from(["wait", "run", "drop"])), max_size=40)
)
def test_units_add_up_whatever_the_estimates_were(jobs: list[tuple[int, int, str]]) -> None:
    window = Window(PASS, passes=3)
    empty = window.room()
    waiting: list[Held] = []
    rest: list[Held] = []
    for i, (estimate, real, fate) in enumerate(jobs):
        held = window.add(claimed(i, units=estimate))
        if fate == "drop":
            window.drop(held)
            continue
        window.ready(held, Job(real))
        if fate == "run":
            window.start(held.key)
            rest.append(held)
        else:
            waiting.append(held)
    assert window.waiting_units == sum(h.units for h in waiting)
    for held in (*waiting, *rest):
        window.finish(held)
        window.drop(held)
    assert window.waiting_units == 0
    assert len(window) == 0
    assert bool(window.room()) == bool(empty)
