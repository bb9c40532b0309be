"""A lull in interactive work is longer than the gaps between its jobs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling.lull import Lull


def after(gaps: list[float]) -> tuple[Lull, float]:
    lull, now = Lull(), 100.0
    lull.end(now)
    for gap in gaps:
        now += gap
        lull.end(now)
    return lull, now


def test_before_the_first_job_there_is_a_lull() -> None:
    assert Lull().lasts(0.0)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_two_seconds_are_none_and_a_minute_is_one_whatever_was_before(gaps: list[float]) -> None:
    lull, now = after(gaps)
    assert not lull.lasts(now + 1.9)
    assert lull.lasts(now + 60.1)


@given(st.floats(0.25, 100.0))
def test_eight_usual_gaps_are_one(gap: float) -> None:
    lull, now = after([gap] * 100)
    longest = min(8 * gap, 60.0)
    assert not lull.lasts(now + 0.98 * longest)
    assert lull.lasts(now + 1.02 * longest)


@pytest.mark.parametrize(("gaps", "seconds"), [([3.0], 2.4), ([3.0, 3.0], 4.5)])
def test_who_calls_seldom_is_soon_taken_for_it(gaps: list[float], seconds: float) -> None:
    lull, now = after([0.01] * 1000 + gaps)
    assert not lull.lasts(now + 0.9 * seconds)


def test_a_night_is_forgotten_within_some_jobs() -> None:
    lull, now = after([*[0.1] * 100, 36_000.0, *[0.1] * 50])
    assert lull.lasts(now + 2.5)


@given(st.floats(0.0, 1e6))
def test_a_clock_that_was_set_back_counts_as_a_moment(back: float) -> None:
    lull, now = after([0.1] * 10)
    lull.end(now - back)
    assert not lull.lasts(now - back)
    assert lull.lasts(now - back + 2.1)
