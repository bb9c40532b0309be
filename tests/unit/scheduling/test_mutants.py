"""The checks have teeth: for each there are schedulers broken in one way, and that check must say so of them, and of the
true one that it is well. Which line of the promise has which check and mutants: the docstring of `harness`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from fmplex_worker.scheduling import CLASSES, INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, drr
from fmplex_worker.scheduling.flow_queue import FlowQueue
from fmplex_worker.scheduling.pass_builder import PassBuilder

from . import harness, mutant_queues, mutants
from .harness import Case, KnownCost, Make

Check = Callable[[Make], object]


def over(check: Callable[[Make, Case], object], traces: int = 20, **kind: object) -> Check:
    """The same check over some traces of one kind; enough that a mutant shows in one of them."""

    def checks(make: Make) -> None:
        for seed in range(traces):
            check(make, Case(seed=seed, **kind))  # type: ignore[arg-type]

    checks.__name__ = check.__name__.removeprefix("check_")
    return checks


def each(check: Callable[..., object], *rest: object, seeds: int = 10) -> Check:
    def checks(make: Make) -> None:
        for seed in range(seeds):
            check(make, seed, *rest)

    checks.__name__ = check.__name__.removeprefix("check_")
    return checks


THREE = (1.0, 2.0, 0.5)
by_price = partial(over, harness.check_service_bound, weights=THREE)
by_measured_cost = partial(over, harness.check_service_bound, weights=THREE, noise=0.3)
new_weights = over(harness.check_new_weights, 60, weights=(0.1, 7.0, 1.0), passes=30)
overtaking = over(harness.check_overtaking, 40, weights=THREE)
never_idle = over(harness.check_never_idle, buckets=2, rooms=True, sizes=(1, 9, 30, 90))
would_fit = partial(over, harness.check_nothing_more_would_fit, weights=THREE)
order = over(harness.check_order, weights=THREE, redelivered=True, buckets=2)
turns = over(harness.check_rare_bucket, weights=(1.0,) * 6, buckets=4)
deficits = over(harness.check_deficits, in_flight=3, noise=0.3, weights=(1.0,))
charged_once = over(harness.check_charged_once, weights=THREE, noise=0.3, redelivered=True, in_flight=2)
alone = over(harness.check_nobody_pays_more_than_alone, weights=THREE, noise=0.3)
shares = each(harness.check_long_run_shares, 2.0, seeds=2)
split = each(harness.check_no_gain_by_splitting, 90, 15, 1.0)
going = each(harness.check_no_gain_by_coming_and_going, 4, 3, 1, 1.0)


def with_queue(broken: type[FlowQueue]) -> Make:
    def make(cost: CostModel, budget: int) -> DeficitRoundRobin:
        scheduler = DeficitRoundRobin(cost, budget)
        scheduler._queues = {cls: broken(cost, scheduler._accounts.weights) for cls in CLASSES}
        return scheduler

    return make


QUEUES: list[tuple[type[FlowQueue], Check]] = [
    (mutant_queues.IgnoresWeights, by_price()),
    (mutant_queues.CountsJobs, by_price(apart=True)),
    (mutant_queues.NeverTruesUp, by_measured_cost(apart=True, adapters=True, passes=200)),
    (mutant_queues.TruesUpTwice, by_measured_cost(20, apart=True, passes=120)),
    (mutant_queues.IgnoresNewWeights, new_weights),
    (mutant_queues.CreditsAtTheNewWeight, new_weights),
    (mutant_queues.NeverTruesUp, shares),
    (mutant_queues.IgnoresWeights, shares),
    (mutant_queues.SmallestFirst, order),
    (mutant_queues.RoundsDown, split),
    (mutant_queues.CountsJobs, split),
    (mutant_queues.GiftForComing, harness.check_coming_and_going_loses_on_average),
    (mutant_queues.PaysTheAbsent, going),
    (mutant_queues.StartsInDebt, lambda make: harness.check_newcomer(make, 4, 8, 10, 1)),
    (mutant_queues.StartsInDebt, overtaking),
    (mutant_queues.KeepsCredit, deficits),
    (mutant_queues.KeepsLateCredit, deficits),
    (mutant_queues.ForgivesDebt, deficits),
    (mutant_queues.ForgivesDebt, harness.check_debt_survives_idleness),
    (mutant_queues.NeverTruesUp, deficits),
    (mutant_queues.ChargesTheCancelled, deficits),
    (mutant_queues.ChargesTheCancelled, charged_once),
    (mutant_queues.TruesUpTwice, charged_once),
]


@pytest.mark.parametrize(("broken", "check"), QUEUES, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_flow_queues_are_caught(broken: type[FlowQueue], check: Check) -> None:
    check(with_queue(FlowQueue))
    with pytest.raises(AssertionError):
        check(with_queue(broken))


BUILDERS: list[tuple[type[PassBuilder], Check]] = [
    (mutants.CreditsEveryPass, by_price()),
    (mutants.CreditsUntilAllCanPay, by_price()),
    (mutants.BorrowsWithoutLimit, by_price(buckets=3)),
    (mutants.BorrowsWithOneBucket, by_price()),
    (mutants.WaitsForCredit, never_idle),
    (mutants.WaitsForRoom, never_idle),
    (mutants.NeverBorrows, would_fit(buckets=3)),
    (mutants.BorrowsHalf, would_fit(buckets=3)),
    (mutants.StopsShort, would_fit()),
    (mutants.NeverBorrows, lambda make: harness.check_full_passes(make, 1, (2,), buckets=4)),
    (mutants.StopsShort, lambda make: harness.check_full_passes(make, 1, (2,), buckets=1)),
    (mutants.StaysInItsBucket, turns),
    (mutants.CreditsEveryPass, overtaking),
    (mutants.CreditsUntilAllCanPay, overtaking),
]


@pytest.mark.parametrize(("broken", "check"), BUILDERS, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_pass_builders_are_caught(
    broken: type[PassBuilder], check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(DeficitRoundRobin)
    monkeypatch.setattr(drr, "PassBuilder", broken)
    with pytest.raises(AssertionError):
        check(DeficitRoundRobin)


def with_charges(broken: type[KnownCost]) -> Make:
    def make(cost: CostModel, budget: int) -> DeficitRoundRobin:
        cost.__class__ = broken
        return DeficitRoundRobin(cost, budget)

    return make


@pytest.mark.parametrize("broken", [mutants.EqualSplit, mutants.EveryonePaysAll, mutants.ChargesThePrediction])
def test_broken_charges_are_caught(broken: type[KnownCost]) -> None:
    flow = Flow("a", INTERACTIVE)
    items = [Item("1", flow, "encode", 500), Item("2", flow, "encode", 1)]
    harness.check_charges(KnownCost(512), items, 3.0)
    with pytest.raises(AssertionError):
        harness.check_charges(broken(512), items, 3.0)
    alone(with_charges(KnownCost))
    with pytest.raises(AssertionError):
        alone(with_charges(broken))


SCHEDULERS: list[tuple[type[DeficitRoundRobin], Check]] = [
    (mutants.PlansNothing, never_idle),
    (mutants.SparesTheCancelled, charged_once),
    (mutants.ChargesTwice, harness.check_settled_once),
]


@pytest.mark.parametrize(("broken", "check"), SCHEDULERS, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_schedulers_are_caught(broken: type[DeficitRoundRobin], check: Check) -> None:
    check(DeficitRoundRobin)
    with pytest.raises(AssertionError):
        check(broken)


REACHED: list[tuple[Callable[[Make, Case], float], Case, float]] = [
    (harness.check_service_bound, Case(0, (1.0,) * 4, (7, 30, 41), apart=True), 0.8),
    (harness.check_service_bound, Case(0, THREE), 0.8),
    (harness.check_overtaking, Case(0, THREE), 0.8),
    (harness.check_rare_bucket, Case(0, (1.0,) * 6, buckets=4), 3),
]


@pytest.mark.parametrize(("check", "case", "near"), REACHED, ids=lambda x: getattr(x, "__name__", ""))
def test_the_bounds_are_reached_or_nearly(check: Callable[[Make, Case], float], case: Case, near: float) -> None:
    """So they are not met only because they are large."""
    assert max(check(DeficitRoundRobin, replace(case, seed=seed)) for seed in range(40)) >= near
