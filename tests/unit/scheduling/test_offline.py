"""Offline work: after interactive work, in short passes, and never quite nothing."""

from __future__ import annotations

import pytest

from fmplex_worker.scheduling import INTERACTIVE, OFFLINE, DeficitRoundRobin, Flow, Plan

from .harness import AMPLE, KnownCost, item, must


def keys(plan: Plan | None) -> list[str]:
    return [it.key for it in must(plan).items]


def run(scheduler: DeficitRoundRobin, now: float = 0.0) -> Plan:
    """Make the next pass, which takes what is expected."""
    plan = must(scheduler.plan(now, AMPLE))
    scheduler.charge(plan, sum(plan.prices))
    return plan


def test_offline_takes_what_interactive_leaves_in_short_passes() -> None:
    scheduler = DeficitRoundRobin(KnownCost(100, alpha=1.0, beta=0.1), 100, offline_slice=4.0)
    for n in range(10):
        scheduler.add(item(f"o{n}", "a", cls=OFFLINE))
    scheduler.add(item("i", "a"))
    assert keys(scheduler.plan(0.0, AMPLE)) == ["i"]
    assert keys(scheduler.plan(0.0, AMPLE)) == ["o0", "o1", "o2"]
    scheduler.add(item("huge", "b", 80, cls=OFFLINE))
    picked = [keys(scheduler.plan(0.0, AMPLE)) for _ in range(4)]
    assert ["huge"] in picked


@pytest.mark.parametrize("trickle", [0.0, 0.05, 0.3])
def test_offline_trickle_under_saturation(trickle: float) -> None:
    cost = KnownCost(100, alpha=1.0, beta=0.1)
    scheduler = DeficitRoundRobin(cost, 100, trickle=trickle, offline_slice=4.0)
    spent = {INTERACTIVE: 0.0, OFFLINE: 0.0}
    flying: list[Plan] = []
    for number in range(3000):
        for cls in spent:
            for n in range(10 - scheduler.pending(Flow("a", cls))):
                scheduler.add(item(f"{cls}{number}.{n}", "a", cls=cls))
        flying.append(must(scheduler.plan(0.0, AMPLE)))
        if len(flying) == 2:
            plan = flying.pop(0)
            seconds = 1.2 + 0.1 * plan.units
            spent[plan.cls] += seconds
            scheduler.charge(plan, seconds)
    assert spent[OFFLINE] / sum(spent.values()) == pytest.approx(trickle, abs=0.004)


def test_spare_offline_passes_are_paid_from_the_trickle() -> None:
    scheduler = DeficitRoundRobin(KnownCost(100), 100, trickle=0.5, offline_slice=9.0)
    for n in range(40):
        scheduler.add(item(f"o{n}", "a", cls=OFFLINE))
    for _ in range(2):
        assert run(scheduler).cls == OFFLINE
    for n in range(40):
        scheduler.add(item(f"i{n}", "a"))
    order = [run(scheduler).cls for _ in range(6)]
    assert order == [INTERACTIVE, INTERACTIVE, *[INTERACTIVE, OFFLINE] * 2]


def interrupted() -> DeficitRoundRobin:
    """One that has just made a pass of an interactive job."""
    scheduler = DeficitRoundRobin(KnownCost(100, alpha=1.0, beta=0.1), 100, offline_slice=4.0)
    scheduler.add(item("interactive", "a", 1))
    run(scheduler)
    return scheduler


def test_a_full_pass_of_offline_work_is_what_its_slice_holds() -> None:
    """So that the next one is made while one runs: measured by a whole pass, what waits would never be enough."""
    scheduler = interrupted()
    for n in range(10):
        scheduler.add(item(f"o{n}", "a", cls=OFFLINE))
    assert scheduler.full_units(INTERACTIVE) == 100
    assert must(scheduler.plan(0.0, AMPLE)).units == scheduler.full_units(OFFLINE) == 30


def test_before_anything_interactive_came_offline_passes_are_full() -> None:
    scheduler = DeficitRoundRobin(KnownCost(100, alpha=1.0, beta=0.1), 100, offline_slice=4.0)
    for n in range(100):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
    assert must(scheduler.plan(0.0, AMPLE)).units == 100


def test_in_a_lull_offline_passes_are_full() -> None:
    """And the pass behind a running one is made when as much waits."""
    scheduler = interrupted()

    def units(now: float) -> int:
        for n in range(100):
            scheduler.add(item(f"{now} {n}", "a", 1, cls=OFFLINE))
        plan = run(scheduler, now)
        assert plan.units == scheduler.full_units(OFFLINE)
        return plan.units

    assert [units(now) for now in (0.5, 1.9, 2.1, 5.0)] == [30, 30, 100, 100]
    scheduler.add(item("again"))
    assert keys(scheduler.plan(6.0, AMPLE)) == ["again"]
    assert units(6.1) == 30


def test_a_smaller_budget_holds_in_a_lull_too() -> None:
    """So what the first caller after it waits for is what the latency targets allow."""
    scheduler = interrupted()
    scheduler.budget = 7
    for n in range(40):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
    assert [must(scheduler.plan(now, AMPLE)).units for now in (0.0, 1000.0)] == [7, 7]


def test_where_there_is_spare_time_no_offline_pass_comes_before_an_interactive_job() -> None:
    scheduler = DeficitRoundRobin(KnownCost(100, alpha=1.0, beta=0.1), 100, trickle=0.05, offline_slice=4.0)
    for n in range(400):
        scheduler.add(item(f"o{n}", "a", 10, cls=OFFLINE))
    run(scheduler)
    for n in range(60):
        for part in range(3):  # two passes: one runs while the other waits
            scheduler.add(item(f"i{n}.{part}", "a", 60))
        classes = [run(scheduler, n * 60.0).cls for _ in range(4)]
        assert classes == [INTERACTIVE] * 3 + [OFFLINE]


def test_a_night_of_spare_time_is_not_held_against_the_day() -> None:
    scheduler = interrupted()
    for n in range(400):
        scheduler.add(item(f"o{n}", "a", cls=OFFLINE))
    for _ in range(50):
        assert run(scheduler).cls == OFFLINE
    for n in range(200):
        scheduler.add(item(f"i{n}", "a", 10))
    waited = 0.0
    while (plan := must(scheduler.plan(1.0, AMPLE))).cls == INTERACTIVE:
        scheduler.charge(plan, sum(plan.prices))
        waited += sum(plan.prices)
    assert 0.05 / 0.95 * (waited - 11.0) <= 4.0 <= 0.05 / 0.95 * waited, "a slice of four seconds"
