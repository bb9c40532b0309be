"""The promise of the scheduler, over random traces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling import DeficitRoundRobin

from . import harness
from .harness import AMPLE, Case, KnownCost

weights = st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 3.7, 10.0]), min_size=2, max_size=5).map(tuple)
sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(tuple)
small = st.lists(st.integers(1, 32), min_size=1, max_size=4).map(tuple)
cases = st.builds(
    Case,
    weights=weights,
    sizes=sizes,
    budget=st.integers(20, 120),
    buckets=st.sampled_from([1, 1, 2, 3]),
    in_flight=st.integers(1, 3),
    noise=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 2**32),
)


@given(cases)
def test_service_of_two_backlogged_flows_stays_within_the_bound(case: Case) -> None:
    harness.check_service_bound(DeficitRoundRobin, case)


@given(sizes, st.integers(20, 120), st.integers(0, 2**32))
def test_equal_weights_and_costs(sizes: tuple[int, ...], budget: int, seed: int) -> None:
    case = Case((1.0,) * 4, sizes, budget, buckets=1, in_flight=1, noise=0.0, seed=seed)
    harness.check_service_bound(DeficitRoundRobin, case)


@given(st.integers(0, 2**32), small, st.sampled_from([1, 2, 4]))
def test_full_passes_when_compatible_fronts_suffice(seed: int, sizes: tuple[int, ...], buckets: int) -> None:
    harness.check_full_passes(DeficitRoundRobin, seed, sizes, buckets)


@given(st.integers(0, 2**32), st.integers(2, 5))
def test_a_rare_bucket_is_served_within_as_many_passes_as_buckets(seed: int, buckets: int) -> None:
    harness.check_rare_bucket(DeficitRoundRobin, seed, buckets)


@pytest.mark.parametrize("bias", [0.4, 1.0, 2.5])
def test_long_run_shares_follow_the_weights(bias: float) -> None:
    harness.check_long_run_shares(DeficitRoundRobin, bias)


@given(
    st.integers(1, 40), st.integers(1, 8), st.integers(0, 30), st.integers(1, 3), st.sampled_from([0.1, 0.5, 1.0, 4.0]),
    st.floats(0, 1),
)  # fmt: skip
def test_a_newcomer_waits_until_it_can_pay_and_one_pass(
    flows: int, budget: int, warm: int, in_flight: int, weight: float, size: float
) -> None:
    units = 10 + int(size * 10 * (budget - 1))
    harness.check_newcomer(DeficitRoundRobin, flows, budget, warm, in_flight, weight, units)


@given(st.integers(0, 2**32), st.sampled_from([1, 1, 3]))
def test_never_idle_while_something_can_run(seed: int, buckets: int) -> None:
    harness.check_never_idle(DeficitRoundRobin, seed, buckets)


@given(st.integers(0, 2**32), sizes)
def test_nothing_is_gained_by_splitting_or_by_large_items(seed: int, units: tuple[int, ...]) -> None:
    harness.check_no_gain(DeficitRoundRobin, seed, units)


@given(st.integers(0, 2**32), st.integers(1, 16), st.sampled_from([10, 20, 40]))
def test_nothing_is_gained_by_coming_and_going(seed: int, units: int, visits: int) -> None:
    harness.check_no_gain(DeficitRoundRobin, seed, (units,), visits)


@given(st.integers(0, 2**32))
def test_a_pass_that_failed_is_charged_once(seed: int) -> None:
    harness.check_refunds(DeficitRoundRobin, seed)


@given(st.integers(0, 2**32))
def test_within_a_flow_order_is_kept(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = DeficitRoundRobin(KnownCost(50), 50)
    load = harness.Load(scheduler, rng, (3, 30, 70), buckets=3)
    for _ in range(60):
        load.add(rng.choice("abc"))
    last = dict.fromkeys("abc", -1)
    while plan := scheduler.plan(0.0, AMPLE):
        for it in plan.items:
            assert last[it.flow.vfm] < int(it.key)
            last[it.flow.vfm] = int(it.key)
    assert len(scheduler) == 0
