"""The promise of the scheduler, over random traces. Which line of it is checked where: the docstring of `harness`."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling import DeficitRoundRobin

from . import harness
from .harness import Case

seeds = st.integers(0, 2**32)
weights = st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.0, 2.0, 3.7, 10.0]), min_size=2, max_size=4).map(tuple)
sizes = st.lists(st.integers(1, 60), min_size=1, max_size=4).map(tuple)
small = st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple)
cases = st.builds(
    Case,
    seed=seeds,
    weights=weights,
    sizes=sizes,
    apart=st.booleans(),
    budget=st.integers(20, 120),
    buckets=st.sampled_from([1, 1, 2, 3]),
    in_flight=st.integers(1, 3),
    noise=st.sampled_from([0.0, 0.3]),
    adapters=st.booleans(),
    rooms=st.booleans(),
    redelivered=st.booleans(),
    deadlines=st.booleans(),
    passes=st.integers(1, 60),
)
sparse = st.builds(replace, cases, weights=st.sampled_from([(), (), (1.0,), (0.5, 2.0)]), rebudget=st.booleans())


def but(**fixed: object) -> st.SearchStrategy[Case]:
    return cases.map(lambda case: replace(case, **fixed))  # type: ignore[arg-type]


@given(st.booleans(), but(noise=0.0, redelivered=False))
def test_service_by_price_of_two_backlogged_flows_stays_within_the_bound(rebudget: bool, case: Case) -> None:
    harness.check_service_bound(DeficitRoundRobin, replace(case, rebudget=rebudget))


@given(but(noise=0.0, redelivered=False, deadlines=False, buckets=1, in_flight=1))
def test_with_one_bucket_nobody_borrows_and_debt_is_not_in_the_bound(case: Case) -> None:
    harness.check_service_bound(DeficitRoundRobin, case)


@given(st.booleans(), but(noise=0.3))
def test_service_by_measured_cost_stays_within_the_bound(rebudget: bool, case: Case) -> None:
    harness.check_service_bound(DeficitRoundRobin, replace(case, rebudget=rebudget))


@given(but(passes=25, redelivered=False))
def test_from_when_weights_changed_service_stays_within_the_bound(case: Case) -> None:
    harness.check_new_weights(DeficitRoundRobin, case)


@given(sizes, st.booleans(), st.integers(20, 120), seeds)
def test_equal_weights_and_costs(sizes: tuple[int, ...], apart: bool, budget: int, seed: int) -> None:
    case = Case(seed, (1.0,) * 4, sizes, apart, budget, passes=40)
    harness.check_service_bound(DeficitRoundRobin, case)


@given(seeds, st.floats(0.4, 2.5))
def test_long_run_shares_follow_the_weights(seed: int, bias: float) -> None:
    harness.check_long_run_shares(DeficitRoundRobin, seed, bias)


@given(but(noise=0.3, adapters=False))
def test_nobody_pays_more_than_for_running_alone(case: Case) -> None:
    harness.check_nobody_pays_more_than_alone(DeficitRoundRobin, case)


@given(sparse)
def test_never_idle_while_something_can_run(case: Case) -> None:
    harness.check_never_idle(DeficitRoundRobin, case)


@given(but(deadlines=False))
def test_a_pass_has_room_left_only_if_nothing_more_would_fit(case: Case) -> None:
    harness.check_nothing_more_would_fit(DeficitRoundRobin, case)


@given(seeds, small, st.sampled_from([1, 2, 4]))
def test_full_passes_when_compatible_fronts_suffice(seed: int, sizes: tuple[int, ...], buckets: int) -> None:
    harness.check_full_passes(DeficitRoundRobin, seed, sizes, buckets)


@given(cases, st.integers(2, 5))
def test_a_rare_bucket_is_served_within_as_many_passes_as_buckets(case: Case, buckets: int) -> None:
    harness.check_rare_bucket(DeficitRoundRobin, replace(case, buckets=buckets))


@given(sparse)
def test_within_a_flow_order_is_kept(case: Case) -> None:
    harness.check_order(DeficitRoundRobin, case)


@given(seeds, st.integers(2, 150), st.integers(2, 40), st.sampled_from([0.5, 1.0, 4.0]))
def test_nothing_is_gained_by_splitting_or_by_large_items(seed: int, work: int, pieces: int, weight: float) -> None:
    harness.check_no_gain_by_splitting(DeficitRoundRobin, seed, work, min(pieces, work), weight)


@given(
    seeds, st.integers(1, 16), st.sampled_from([1, 3, 7, 15]), st.integers(1, 3), st.sampled_from([0.7, 1.0, 1.4])
)  # fmt: skip
def test_nothing_is_gained_by_coming_and_going(seed: int, units: int, visits: int, in_flight: int, bias: float) -> None:
    harness.check_no_gain_by_coming_and_going(DeficitRoundRobin, seed, units, visits, in_flight, bias)


@given(st.booleans(), cases)
def test_what_is_redelivered_or_cancelled_is_charged_once_or_not_at_all(rebudget: bool, case: Case) -> None:
    harness.check_charged_once(DeficitRoundRobin, replace(case, rebudget=rebudget))


@given(
    st.integers(1, 40), st.integers(1, 8), st.integers(0, 30), st.integers(1, 3), st.sampled_from([0.1, 0.5, 1.0, 4.0]),
    st.floats(0, 1),
)  # fmt: skip
def test_a_newcomer_waits_until_it_can_pay_and_one_pass(
    flows: int, budget: int, warm: int, in_flight: int, weight: float, size: float
) -> None:
    units = 10 + int(size * 10 * (budget - 1))
    harness.check_newcomer(DeficitRoundRobin, flows, budget, warm, in_flight, weight, units)


@given(but(noise=0.0, adapters=False))
def test_others_get_what_a_newcomers_rounds_are_worth(case: Case) -> None:
    harness.check_overtaking(DeficitRoundRobin, case)


@given(sparse)
def test_an_empty_flow_keeps_only_its_debt_also_after_a_late_true_up(case: Case) -> None:
    harness.check_deficits(DeficitRoundRobin, case)
