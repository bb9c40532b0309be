"""Offline work: after interactive work, in short passes, and never quite nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.scheduling import INTERACTIVE, OFFLINE, DeficitRoundRobin, Flow, Plan, Room

from .harness import AMPLE, KnownCost, deficit, flow_queue, item, must, own


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
    for n in range(800):
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


# ---- what rides in interactive passes ----


def made(alpha: float = 0.3, *, offline_slice: float = 4.0, trickle: float = 0.05) -> DeficitRoundRobin:
    """Full passes of 100 units, 0.1 s each and `alpha`; interactive work was there just now, at 0 s."""
    cost = KnownCost(100, alpha=alpha, beta=0.1)
    scheduler = DeficitRoundRobin(cost, 100, trickle=trickle, offline_slice=offline_slice)
    scheduler.add(item("before"))
    run(scheduler)
    return scheduler


def test_offline_items_ride_in_an_interactive_pass_and_make_it_a_part_of_a_slice_longer() -> None:
    scheduler = made()
    for n in range(40):
        scheduler.add(item(f"o{n}", "a", 3, cls=OFFLINE))
    scheduler.add(item("i", "a", 41))
    plan = must(scheduler.plan(0.0, AMPLE))
    assert plan.cls == INTERACTIVE
    assert keys(plan) == ["i", *(f"o{n}" for n in range(5))], "1.5 seconds are fifteen units"
    assert plan.units_by_class == {INTERACTIVE: 41, OFFLINE: 15}
    assert plan.seconds == pytest.approx(0.3 + 5.6)


def test_a_full_pass_has_no_room_for_riders() -> None:
    scheduler = made()
    for n in range(20):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
    for units, riding in ((100, 0), (93, 7)):
        scheduler.add(item(f"i{units}", "a", units))
        assert must(scheduler.plan(0.0, AMPLE)).units_by_class == {INTERACTIVE: units, OFFLINE: riding}


def test_who_waited_for_an_offline_pass_shares_the_next_with_none() -> None:
    scheduler = made(trickle=0.0)
    for n in range(80):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
    assert must(scheduler.plan(0.0, AMPLE)).units_by_class == {INTERACTIVE: 0, OFFLINE: 37}
    for rode in (0, 15):
        scheduler.add(item(f"i{rode}", "a", 11))
        assert must(scheduler.plan(0.0, AMPLE)).units_by_class == {INTERACTIVE: 11, OFFLINE: rode}


def test_an_item_that_does_not_fit_into_what_is_left_waits() -> None:
    scheduler = made()
    scheduler.add(item("large", "a", 16, cls=OFFLINE))
    scheduler.add(item("i", "a", 11))
    assert [keys(scheduler.plan(0.0, AMPLE)) for _ in range(2)] == [["i"], ["large"]]


def test_offline_items_ride_only_in_passes_of_their_bucket() -> None:
    scheduler = made()
    scheduler.add(item("o", "a", 1, cls=OFFLINE, bucket="wide"))
    scheduler.add(item("i", "a", 1))
    assert [keys(scheduler.plan(0.0, AMPLE)) for _ in range(2)] == [["i"], ["o"]]
    scheduler.add(item("before i", "a", 1))
    assert keys(scheduler.plan(0.0, AMPLE)) == ["before i"]
    for n, bucket in enumerate([None, "wide"]):
        scheduler.add(item(f"o{n}", f"v{n}", 1, cls=OFFLINE, bucket=bucket))
    scheduler.add(item("wide i", "a", 1, bucket="wide"))
    assert keys(scheduler.plan(0.0, AMPLE)) == ["wide i", "o1"]


def test_nothing_rides_with_a_redelivered_job_nor_is_one_a_rider() -> None:
    scheduler = made()
    scheduler.add(item("o", "a", 1, cls=OFFLINE))
    scheduler.add(item("o alone", "b", 1, cls=OFFLINE, alone=True))
    scheduler.add(item("i alone", "a", 1, alone=True))
    scheduler.add(item("i", "a", 1))
    passes = [keys(scheduler.plan(0.0, AMPLE)) for _ in range(3)]
    assert passes == [["i alone"], ["i", "o"], ["o alone"]]


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_nothing_rides_with_texts_that_are_in_many_passes(phase: str) -> None:
    scheduler = made()
    scheduler.add(item("o", "a", 1, cls=OFFLINE))
    scheduler.add(item("i", "a", 1))
    scheduler.add(replace(item("text", "b", 1), phase=phase))  # type: ignore[arg-type]
    assert sorted(keys(scheduler.plan(0.0, AMPLE))) == ["i", "text"]


def test_a_pass_that_is_shortened_for_a_deadline_is_not_filled_again() -> None:
    scheduler = made(0.0, offline_slice=100.0)
    for n in range(10):
        scheduler.add(item(f"o{n}", "a", 5, cls=OFFLINE))
    for n in range(13):
        scheduler.add(item(f"i{n}", "b", 5, deadline=1017.05 if n == 0 else None))
    for now in (1000.0, 1002.0, 1004.0):
        assert scheduler.plan(now, Room(0, 0)) is None  # so that nothing has arrived lately
    plan = must(scheduler.plan(1010.0, AMPLE))
    assert plan.units_by_class == {INTERACTIVE: 65, OFFLINE: 5}


def test_riders_make_no_interactive_job_late() -> None:
    scheduler = made()
    for n in range(60):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
    for deadline, units in ((101.45, 11), (101.2, 25), (200.0, 25)):
        scheduler.add(item(f"i{deadline}", "a", 5, deadline=deadline))
        scheduler.add(item(f"j{deadline}", "b", 5, deadline=300.0))
        # The second is late in any case: 10 units take 1.3 s.
        assert must(scheduler.plan(100.0, AMPLE)).units == units


def test_riders_leave_the_room_of_the_engine() -> None:
    scheduler = made()
    for n in range(10):
        scheduler.add(item(f"o{n}", "a", 1, cls=OFFLINE))
        scheduler.add(item(f"i{n}", "b", 1))
    assert len(keys(scheduler.plan(0.0, Room(AMPLE.units, 12)))) == 12
    for n in range(10, 20):
        scheduler.add(item(f"i{n}", "b", 1))
    assert must(scheduler.plan(0.0, Room(13, AMPLE.items))).units == 13


jobs = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40), st.sampled_from([None, "x"])), max_size=12)


@given(st.lists(jobs, min_size=1, max_size=12), st.floats(0.0, 1.0), st.floats(0.1, 8.0))
def test_riders_take_nobodys_place(
    waves: list[list[tuple[str, int, str | None]]], alpha: float, slice_s: float
) -> None:
    """Interactive passes hold what they would hold without offline work, and are longer by three eighths of a slice at most;
    offline ones, while there is interactive work, are no longer than a slice, unless one item is."""
    beside, alone = (made(alpha, offline_slice=slice_s, trickle=0.0) for _ in range(2))
    number, before = 0, INTERACTIVE
    for wave in waves:
        for vfm, units, bucket in wave:
            number += 1
            for scheduler in (beside, alone):
                scheduler.add(item(f"i{number}", vfm, units, bucket=bucket))
            beside.add(item(f"o{number}", vfm, max(1, units // 4), cls=OFFLINE, bucket=bucket))
        with_riders, without = (scheduler.plan(0.0, AMPLE) for scheduler in (beside, alone))
        if without is None:
            assert with_riders is None or with_riders.cls == OFFLINE
        else:
            plan = must(with_riders)
            mine = own(plan)
            assert plan.items[: len(mine)] == without.items
            assert {it.bucket for it in plan.items} == {without.bucket}
            assert plan.seconds <= without.seconds + 0.375 * slice_s + 1e-9
            assert len(mine) == len(plan.items) or before == INTERACTIVE
        if with_riders is not None and with_riders.cls == OFFLINE and len(with_riders.items) > 1:
            assert with_riders.seconds <= slice_s + 1e-9
        before = before if with_riders is None else with_riders.cls


weights = st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=3)


@given(
    weights,
    st.lists(st.integers(0, 60), min_size=5, max_size=30),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
)
def test_riders_share_by_weight(weights: list[float], interactive: list[int], sizes: list[int]) -> None:
    """The promise of the scheduler holds for offline flows, in whatever passes they are served."""
    scheduler = made(offline_slice=8.0)
    for n, weight in enumerate(weights):
        scheduler.set_weight(f"v{n}", weight)
    got = [0.0] * len(weights)
    leads = {(i, j): [0.0] for i in range(len(weights)) for j in range(i)}
    queued = [0] * len(weights)
    number, quantum = 0, 0.0
    for units in interactive:
        for n in range(len(weights)):
            while queued[n] < 90:  # more than a pass
                number += 1
                queued[n] += (size := sizes[(n + number) % len(sizes)])
                scheduler.add(item(number, f"v{n}", size, cls=OFFLINE))
        if units:
            scheduler.add(item(f"i{number} {units}", "v0", units))
        quantum = max(quantum, flow_queue(scheduler, OFFLINE).quantum)
        plan = run(scheduler)
        for it, price in zip(plan.items, plan.prices, strict=True):
            if it.flow.cls == OFFLINE:
                got[int(it.flow.vfm[1:])] += price
                queued[int(it.flow.vfm[1:])] -= it.units
        for (i, j), lead in leads.items():
            lead.append(got[i] / weights[i] - got[j] / weights[j])
    largest = 12 * KnownCost(100, alpha=0.3, beta=0.1).price(1)
    for (i, j), lead in leads.items():
        assert max(lead) - min(lead) <= 2 * quantum + largest * (1 / weights[i] + 1 / weights[j]) + 1e-9


def test_what_riders_got_is_not_due_from_the_trickle() -> None:
    """So no interactive job waits for a pass of theirs; but it is not held against them for ever."""
    scheduler = made()
    for n in range(40):
        for i in range(25):
            scheduler.add(item(f"o{n} {i}", "a", 1, cls=OFFLINE))
        scheduler.add(item(f"i{n}", "a", 10))
        assert run(scheduler).cls == INTERACTIVE
    for n in range(200):
        scheduler.add(item(f"full {n}", "a", 100))
    waited = 0.0
    while (plan := run(scheduler)).cls == INTERACTIVE:
        waited += sum(plan.prices)
    assert 0.05 / 0.95 * (waited - 11.0) <= 4.0 <= 0.05 / 0.95 * waited, "a slice of four seconds"


def test_what_is_too_large_to_ride_gets_its_trickle() -> None:
    scheduler = made()
    for n in range(60):
        scheduler.add(item(f"o{n}", "a", 30, cls=OFFLINE))
    passes = []
    for n in range(400):
        scheduler.add(item(f"i{n}", "a", 10))
        passes.append(run(scheduler))
    offline = sum(plan.seconds for plan in passes if plan.cls == OFFLINE)
    assert offline / sum(plan.seconds for plan in passes) == pytest.approx(0.05, abs=0.01)


def test_what_a_pass_cost_otherwise_goes_to_the_flow_of_each_class() -> None:
    """Of one vFM, too."""
    scheduler = made()
    for n in range(2):
        scheduler.add(item(f"o{n}", "a", 5, cls=OFFLINE))
        scheduler.add(item(f"i{n}", "a", 15, bucket=None if n == 0 else "x"))
    plan = must(scheduler.plan(0.0, AMPLE))
    assert plan.units_by_class == {INTERACTIVE: 15, OFFLINE: 10}
    scheduler.add(item("o more", "a", 5, cls=OFFLINE))
    before = {cls: deficit(scheduler, "a", cls) for cls in (INTERACTIVE, OFFLINE)}
    price = sum(plan.prices)
    charges = scheduler.charge(plan, 2 * price)
    assert sum(charges[:1]) == pytest.approx(1.2 * price)
    assert deficit(scheduler, "a", INTERACTIVE) - before[INTERACTIVE] == pytest.approx(-0.6 * price)
    assert deficit(scheduler, "a", OFFLINE) - before[OFFLINE] == pytest.approx(-0.4 * price)


def test_where_offline_work_only_rides_its_credit_follows_the_prices_too() -> None:
    scheduler = made()
    quanta = []
    for n in range(40):
        scheduler.add(item(f"o{n}", "a", 1 if n < 10 else 14, cls=OFFLINE))
        scheduler.add(item(f"i{n}", "a", 1))
        assert run(scheduler).cls == INTERACTIVE
        quanta.append(flow_queue(scheduler, OFFLINE).quantum)
    assert quanta[-1] > 2 * quanta[0]
