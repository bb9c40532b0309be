"""The pass budget by itself: the shortest pass, whose targets count, and when it moves."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fmplex_worker.scheduling import PassBudget

from .harness import KnownCost

MOST = 100
alphas = st.floats(0.01, 5)
betas = st.floats(0.001, 1)


def budget(alpha: float = 1.0, beta: float = 0.1, most: int = MOST) -> PassBudget:
    """A pass of X units takes α + βX seconds: with these, 11 s at most."""
    return PassBudget(KnownCost(most, alpha=alpha, beta=beta), most)


def throughput(units: int, alpha: float, beta: float) -> float:
    return units / (alpha + beta * units)


@given(alphas, betas, st.integers(2, 5000))
def test_the_shortest_pass_has_half_the_throughput_of_the_longest_and_no_shorter_one_has(
    alpha: float, beta: float, most: int
) -> None:
    least, half = budget(alpha, beta, most).least, throughput(most, alpha, beta) / 2
    assert 1 <= least <= most
    assert throughput(least, alpha, beta) >= half * (1 - 1e-9)
    assert least == 1 or throughput(least - 1, alpha, beta) < half * (1 + 1e-9)


def test_where_a_pass_has_no_fixed_cost_one_of_a_single_unit_will_do() -> None:
    assert budget(alpha=0.0).least == 1
    assert budget(alpha=-0.0, beta=1.0).least == 1


@given(alphas, betas, st.lists(st.floats(0.001, 200), min_size=1, max_size=6))
def test_the_first_answer_is_what_the_tightest_target_allows_but_never_less_than_the_shortest(
    alpha: float, beta: float, targets: list[float]
) -> None:
    b = budget(alpha, beta)
    for n, seconds in enumerate(targets):
        b.record_target(f"v{n}", seconds, now=0.0)
    tightest = min(targets)
    within = max((x for x in range(1, MOST + 1) if alpha + beta * x <= tightest), default=1)
    assume(abs((tightest - alpha) / beta - round((tightest - alpha) / beta)) > 1e-6)
    wanted = max(within, b.least)
    units = b.units(0.0)
    assert units == wanted or (units == MOST and MOST - wanted <= 0.05 * MOST), "hardly any change is none"


def test_a_target_counts_until_its_vfm_has_been_away_for_a_minute() -> None:
    b = budget()
    b.record_target("a", 6.0, now=10.0)
    assert b.units(69.9) == 50
    b.record_target("a", 6.0, now=69.9)
    assert b.units(129.8) == 50, "it was seen again"
    assert b.units(129.9) == MOST


def test_the_last_target_of_a_vfm_is_the_one_that_counts() -> None:
    b = budget()
    b.record_target("a", 3.0, now=0.0)
    b.record_target("a", 6.0, now=0.0)
    assert b.units(0.0) == 50
    b.record_target("a", 0.0, now=1.0)
    assert b.units(1.0) == MOST, "it takes passes of any length"
    b.record_target("stranger", 0.0, now=1.0)
    assert b.units(1.0) == MOST


@pytest.mark.parametrize(("seconds", "units"), [(6.2, 50), (6.26, 50), (5.8, 50), (6.3, 53), (5.7, 47)])
def test_a_change_of_a_twentieth_or_less_is_none(seconds: float, units: int) -> None:
    b = budget()
    b.record_target("a", 6.0, now=0.0)
    assert b.units(0.0) == 50
    b.record_target("a", seconds + 1e-9, now=1.0)
    assert b.units(1.0) == units


def test_back_to_full_passes_it_goes_however_small_the_step() -> None:
    b = budget(beta=1.0)  # a pass of X units takes 1 + X seconds
    for seconds, units in ((91.0, 90), (97.0, 96), (99.0, 96), (101.0, MOST)):
        b.record_target("a", seconds, now=0.0)
        assert b.units(0.0) == units


def test_vfms_that_want_shorter_passes_than_the_shortest_are_named_in_order() -> None:
    b = budget()  # the shortest pass has 9 units, 1.9 s
    assert b.least == 9
    for vfm, seconds in (("late", 1.8), ("fine", 1.9 + 1e-9), ("early", 0.5), ("none", 0.0)):
        b.record_target(vfm, seconds, now=0.0)
    assert b.missed_targets() == ["early", "late"]
    assert b.units(0.0) == 9
    b.units(60.0)
    assert b.missed_targets() == [], "nobody is there any more"
