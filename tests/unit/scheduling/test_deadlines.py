"""What a deadline may do to a pass, and what not; and the pass budget that latency targets ask for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.specs.vfm import Slo
from fmplex_worker.scheduling import DeficitRoundRobin, PassBudget
from fmplex_worker.scheduling.deadlines import Arrivals, Moment

from .harness import AMPLE, KnownCost, item, must

BUDGET = 100
seconds = st.floats(0.01, 100)


def crowd(cost: KnownCost, items: int = 30) -> DeficitRoundRobin:
    """Flows of one item each, which came a while ago."""
    scheduler = DeficitRoundRobin(cost, BUDGET)
    scheduler.plan(0.0, AMPLE)
    for n in range(items):
        scheduler.add(item(n, f"v{n}"))
    quiet(scheduler)
    return scheduler


def quiet(scheduler: DeficitRoundRobin, since: float = 90.0) -> None:
    """Seconds pass in which nothing comes."""
    for second in (since, since + 2, since + 4):
        scheduler._arrivals.rate(second)


def test_a_pass_is_shortened_for_a_deadline_that_a_full_one_would_miss() -> None:
    cost = KnownCost(BUDGET, alpha=1.0, beta=0.1)  # a full pass takes 11
    scheduler = crowd(cost)
    scheduler.add(item("urgent", "u", deadline=108.0))
    plan = must(scheduler.plan(100.0, AMPLE))
    assert "urgent" in {it.key for it in plan.items}
    assert BUDGET / 2 <= plan.units <= 70  # 8 seconds' worth
    assert must(scheduler.plan(108.0, AMPLE)).units == BUDGET


def test_a_shortened_pass_has_room_for_whom_it_was_shortened() -> None:
    """Whatever the first flow in the ring could pay for."""
    scheduler = crowd(KnownCost(BUDGET, alpha=0.1, beta=0.01), items=0)
    scheduler.set_weight("rich", 1000.0)
    for n in range(30):
        scheduler.add(item(n, "rich"))
    quiet(scheduler, since=95.0)
    scheduler.add(item("lost", "l", deadline=100.1))  # not even alone
    scheduler.add(item("urgent", "u", deadline=100.8))
    plan = must(scheduler.plan(100.0, AMPLE))
    assert "urgent" in {it.key for it in plan.items}
    assert BUDGET / 2 <= plan.units <= 70


def test_never_below_half_a_budget() -> None:
    scheduler = crowd(KnownCost(BUDGET, alpha=1.0, beta=0.1))
    scheduler.add(item("urgent", "u", deadline=103.0))  # two seconds' worth is a fifth of a pass
    assert must(scheduler.plan(100.0, AMPLE)).units == BUDGET


def test_not_while_more_arrives_than_shorter_passes_serve() -> None:
    scheduler = crowd(KnownCost(BUDGET, alpha=1.0, beta=0.1), items=0)
    scheduler.plan(100.0, AMPLE)
    for n in range(100):  # in ten seconds a thousand units: full passes serve 909 of them, shorter ones fewer
        scheduler.add(item(n, f"v{n}"))
    scheduler.add(item("urgent", "u", deadline=118.0))
    assert must(scheduler.plan(110.0, AMPLE)).units == BUDGET


@given(st.integers(1, 200), seconds, st.floats(0, 50), st.floats(0, 10), st.floats(0.001, 1))
def test_a_shorter_pass_is_in_time_keeps_up_and_is_half_a_budget_at_least(
    units: int, deadline: float, arrivals: float, alpha: float, beta: float
) -> None:
    cost = KnownCost(BUDGET, alpha=alpha, beta=beta)
    shorter = Moment(0.0, cost, BUDGET, arrivals).shortened(units, deadline)
    if shorter != units:
        assert BUDGET / 2 <= shorter < units
        assert cost.predict(shorter) <= deadline < cost.predict(units)
        assert shorter / cost.predict(shorter) > arrivals


def test_arrivals_are_counted_over_the_last_second_or_so() -> None:
    arrivals = Arrivals()
    assert arrivals.rate(10.0) == 0
    arrivals.record(100)
    assert arrivals.rate(12.0) == 50
    assert arrivals.rate(12.5) == 50
    arrivals.record(80)
    assert arrivals.rate(12.9) == 80  # a burst is seen at once
    assert arrivals.rate(13.0) == 80
    assert arrivals.rate(13.5) == 80
    assert arrivals.rate(14.0) == 0
    arrivals.record(5000)
    assert arrivals.rate(74.0) >= 2500  # not spread over the minute in which nothing came


def goodput(load: float, seed: int) -> float:
    """The share of jobs done in time, at a part of the maximum rate; what cannot be in time is not run."""
    cost, rng = KnownCost(BUDGET, alpha=0.02, beta=0.0004), random.Random(seed)
    scheduler = DeficitRoundRobin(cost, BUDGET)
    rate = load * BUDGET / cost.predict(BUDGET) / 10
    arrivals: list[tuple[float, float]] = []
    at = now = 0.0
    for _ in range(1500):
        at += rng.expovariate(rate)
        arrivals.append((at, at + rng.uniform(0.06, 0.2)))
    due: dict[str, float] = {}
    done = came = 0
    while came < len(arrivals) or len(scheduler):
        while came < len(arrivals) and arrivals[came][0] <= now:
            due[str(came)] = arrivals[came][1]
            scheduler.add(item(came, f"v{came % 10}", deadline=arrivals[came][1]))
            came += 1
        for key in [key for key in due if due[key] < now + cost.predict(10)]:
            scheduler.remove(key)
            del due[key]
        plan = scheduler.plan(now, AMPLE)
        if plan is None:
            now = max(now, arrivals[came][0]) if came < len(arrivals) else now
            continue
        now += cost.predict(plan.units)
        scheduler.charge(plan, cost.predict(plan.units))
        done += sum(due.pop(it.key) >= now for it in plan.items)
    return done / len(arrivals)


@contextmanager
def always_in_time() -> Iterator[None]:
    """The rule that collapses: whatever it costs, the pass ends by the earliest deadline."""

    def shortened(self: Moment, units: int, deadline: float) -> int:
        return min(units, self.cost.units_within(deadline - self.begin, units))

    with mock.patch.object(Moment, "shortened", shortened):
        yield


@contextmanager
def never_shorter() -> Iterator[None]:
    with mock.patch.object(Moment, "shortened", lambda self, units, deadline: units):
        yield


def test_deadlines_under_load_do_not_cost_goodput() -> None:
    for load in (0.5, 0.9, 1.2):
        with never_shorter():
            plain = goodput(load, 1)
        assert goodput(load, 1) >= plain - 0.02
        if load >= 0.9:
            with always_in_time():
                assert goodput(load, 1) < plain - 0.02


# ---- the budget ----

_PART = Slo(latency_ms=1000).targets.pass_ms / 1000  # of a latency target that a pass may take


@given(st.lists(seconds, max_size=5), st.floats(0, 5), st.floats(0.001, 1))
def test_the_budget_is_what_the_tightest_target_allows(targets: list[float], alpha: float, beta: float) -> None:
    cost = KnownCost(BUDGET, alpha=alpha, beta=beta)
    budget = PassBudget(cost, BUDGET)
    for n, target in enumerate(targets):
        budget.record_target(f"v{n}", _PART * target, now=0.0)
    units = budget.units(now=1.0)
    assert 1 <= units <= BUDGET
    full, least = BUDGET / cost.predict(BUDGET), budget.least
    if units < BUDGET:
        assert units / cost.predict(units) >= 0.5 * full * (1 - 1e-9)
        assert 2 * cost.predict(units) <= min(targets) or units == least
    missed = {f"v{n}" for n, target in enumerate(targets) if cost.predict(least) > _PART * target}
    assert set(budget.missed_targets()) == missed


def test_a_budget_follows_targets_that_come_change_and_go() -> None:
    budget = PassBudget(KnownCost(BUDGET, alpha=1.0, beta=0.1), BUDGET)
    assert budget.units(0.0) == BUDGET
    budget.record_target("a", _PART * 20.0, 1.0)
    assert budget.units(1.0) == 70  # two passes of eight seconds each, and a fifth of the target for the way
    budget.record_target("a", _PART * 20.5, 2.0)
    assert budget.units(2.0) == 70  # hardly any change is none
    budget.record_target("b", _PART * 15.0, 3.0)
    assert budget.units(3.0) == 50
    budget.record_target("b", 0.0, 4.0)
    assert budget.units(4.0) == 72
    assert budget.units(70.0) == BUDGET  # nobody has been seen for a minute
