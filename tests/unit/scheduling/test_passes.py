"""What goes into a pass, case by case: the rules of docs/scheduling.md that a trace would not show plainly."""

from __future__ import annotations

import pytest

from fmplex_worker.scheduling import INTERACTIVE, DeficitRoundRobin, Flow, Plan, Room

from . import harness
from .harness import AMPLE, KnownCost, deficit, flow_queue, item, must


def drr(budget: int = 100, **options: float) -> DeficitRoundRobin:
    return DeficitRoundRobin(KnownCost(budget), budget, **options)


def keys(plan: Plan | None) -> list[str]:
    return [it.key for it in must(plan).items]


def test_nothing_runnable_no_plan() -> None:
    scheduler = drr()
    assert scheduler.plan(0.0, AMPLE) is None
    scheduler.add(item(1))
    assert scheduler.plan(0.0, Room(0, 10)) is None
    assert scheduler.plan(0.0, Room(10, 0)) is None
    assert keys(scheduler.plan(0.0, AMPLE)) == ["1"]


def test_room_bounds_a_pass_in_units_and_items() -> None:
    scheduler = drr()
    for n in range(10):
        scheduler.add(item(n))
    assert keys(scheduler.plan(0.0, Room(35, 9))) == ["0", "1", "2"]
    assert keys(scheduler.plan(0.0, Room(99, 2))) == ["3", "4"]


@pytest.mark.parametrize("room", [AMPLE, Room(40, 40)])
def test_an_item_larger_than_a_pass_goes_alone(room: Room) -> None:
    scheduler = drr()
    scheduler.add(item("small", "a"))
    scheduler.add(item("large", "b", 150))
    scheduler.add(item("last", "c"))
    assert [keys(scheduler.plan(0.0, room)) for _ in range(2)] == [["small", "last"], ["large"]]


def test_a_redelivered_item_goes_alone_in_its_turn() -> None:
    scheduler = drr()
    scheduler.add(item("suspect", "a", alone=True))
    scheduler.add(item("next", "a"))
    scheduler.add(item("other", "b"))
    assert [keys(scheduler.plan(0.0, AMPLE)) for _ in range(2)] == [["suspect"], ["other", "next"]]


def test_two_buckets_never_share_a_pass() -> None:
    scheduler = drr()
    for n in range(20):
        scheduler.add(item(n, f"v{n}", bucket=n % 3))
    while plan := scheduler.plan(0.0, AMPLE):
        assert {it.bucket for it in plan.items} == {plan.bucket}
    assert len(scheduler) == 0


def test_full_pass_resumes_at_the_interrupted_flow() -> None:
    scheduler = drr(30)
    scheduler.set_weight("b", 4)
    for vfm in "abc":
        for n in range(8):
            scheduler.add(item(f"{vfm}{n}", vfm))
    assert keys(scheduler.plan(0.0, AMPLE)) == ["a0", "b0", "b1"]
    assert keys(scheduler.plan(0.0, AMPLE)) == ["b2", "b3", "c0"]


def test_debt_fills_a_pass_that_another_bucket_would_cut_short() -> None:
    scheduler = drr(100)
    for n in range(20):
        scheduler.add(item(f"a{n}", "a", bucket="A"))
    scheduler.add(item("b0", "b", bucket="B"))
    plan = must(scheduler.plan(0.0, AMPLE))
    price = plan.prices[0]
    assert len(plan.items) == 6  # its one eligible front, and half a pass on debt
    assert deficit(scheduler, "a") == pytest.approx(-5 * price)
    assert keys(scheduler.plan(0.0, AMPLE)) == ["b0"]


def test_one_bucket_needs_no_debt() -> None:
    scheduler = drr(100)
    scheduler.add(item("large", "b", 90))
    for n in range(20):
        scheduler.add(item(f"a{n}", "a"))
    for _ in range(3):
        must(scheduler.plan(0.0, AMPLE))
        assert all(share.deficit > -1e-12 for share in scheduler.shares().values())


def test_an_urgent_front_goes_first_on_debt() -> None:
    scheduler = drr(20)
    for n in range(30):
        scheduler.add(item(n, f"v{n}"))
    scheduler.add(item("urgent", "u", deadline=4.0))
    scheduler.add(item("hopeless", "h", deadline=-1.0))
    scheduler.add(item("relaxed", "r", deadline=1e6))
    plan = must(scheduler.plan(0.0, AMPLE))
    assert [it.key for it in plan.items] == ["0", "urgent"]
    later = [key for _ in range(16) for key in keys(scheduler.plan(0.0, AMPLE))]
    assert later.index("hopeless") == 29
    assert later[-1] == "relaxed"


def test_urgency_goes_into_debt_only_so_far() -> None:
    scheduler = drr(40)
    for n in range(40):
        scheduler.add(item(f"u{n}", "u", deadline=1.0))
        scheduler.add(item(f"a{n}", "a"))
    for _ in range(10):
        must(scheduler.plan(0.0, AMPLE))
        assert deficit(scheduler, "u") >= -scheduler.max_debt - 1e-9


def test_debt_survives_idleness() -> None:
    harness.check_debt_survives_idleness(DeficitRoundRobin)


def test_settled_once() -> None:
    harness.check_settled_once(DeficitRoundRobin)


def test_credit_is_kept_while_the_stream_holds_more() -> None:
    scheduler = drr()
    flow = Flow("a", INTERACTIVE)
    scheduler.set_weight("a", 5)
    scheduler.expect(flow, True)
    scheduler.add(item(1))
    price = must(scheduler.plan(0.0, AMPLE)).prices[0]
    assert deficit(scheduler, "a") == pytest.approx(4 * price)
    scheduler.expect(flow, False)
    assert deficit(scheduler, "a") == 0
    assert not flow_queue(scheduler).flows


def test_a_removed_item_leaves_no_charge() -> None:
    scheduler = drr()
    for n in range(3):
        scheduler.add(item(n))
    assert scheduler.remove("0") == item(0)
    assert scheduler.remove("1") == item(1)
    assert scheduler.remove("1") is None
    assert keys(scheduler.plan(0.0, AMPLE)) == ["2"]
    assert scheduler.remove("2") is None  # in flight
    scheduler.add(item(3))
    assert scheduler.remove("3") == item(3)
    assert deficit(scheduler, "a") == len(scheduler) == len(flow_queue(scheduler).flows) == 0


def test_an_idle_flow_costs_no_memory() -> None:
    scheduler = drr()
    for n in range(500):
        scheduler.add(item(n, f"v{n}"))
        plan = must(scheduler.plan(0.0, AMPLE))
        scheduler.charge(plan, sum(plan.prices) * (0.5 if n % 2 else 3.0))
    for n in range(100):
        scheduler.add(item(n, "other"))
        plan = must(scheduler.plan(0.0, AMPLE))
        scheduler.charge(plan, sum(plan.prices))
    assert len(flow_queue(scheduler).flows) == 0
    assert not flow_queue(scheduler)._debtors


def test_cancelling_over_and_over_costs_no_memory() -> None:
    scheduler = drr()
    for n in range(2000):
        scheduler.add(item(f"a{n}", "a", deadline=1e9))
        scheduler.add(item(f"b{n}", "b", deadline=1e9))
        scheduler.remove(f"a{n}")
        scheduler.remove(f"b{n - 1}")
    (lane,) = flow_queue(scheduler).lanes.values()
    assert max(len(lane.heap), len(lane.urgent)) < 100


def test_weights_count_from_when_they_are_set() -> None:
    scheduler = drr(80)
    for n in range(200):
        scheduler.add(item(f"a{n}", "a"))
        scheduler.add(item(f"b{n}", "b"))
    picked = [key[0] for _ in range(4) for key in keys(scheduler.plan(0.0, AMPLE))]
    assert abs(picked.count("a") - picked.count("b")) <= 2
    scheduler.set_weight("b", 3)
    picked = [key[0] for _ in range(8) for key in keys(scheduler.plan(0.0, AMPLE))]
    assert abs(3 * picked.count("a") - picked.count("b")) <= 6
    with pytest.raises(ValueError, match="positive"):
        scheduler.set_weight("b", 0)


def test_a_weight_counts_that_is_set_while_a_flow_is_empty() -> None:
    """A flow that keeps its record, for its debt or for what its stream holds, must not keep its old weight."""
    scheduler = drr(1000)
    scheduler.expect(Flow("a", INTERACTIVE), True)
    scheduler.add(item("first"))
    scheduler.charge(plan := must(scheduler.plan(0.0, AMPLE)), sum(plan.prices))
    scheduler.set_weight("a", 3)
    for n in range(60):
        scheduler.add(item(f"a{n}", "a"))
        scheduler.add(item(f"b{n}", "b"))
    scheduler.budget = 400
    picked = [key[0] for key in keys(scheduler.plan(0.0, AMPLE))]
    assert abs(picked.count("a") - 3 * picked.count("b")) <= 3


def test_forgotten_vfm() -> None:
    scheduler = drr()
    scheduler.set_weight("a", 2)
    scheduler.add(item(1))
    with pytest.raises(ValueError, match="waiting"):
        scheduler.forget("a")
    scheduler.charge(must(scheduler.plan(0.0, AMPLE)), 9.0)
    scheduler.forget("a")
    assert scheduler.shares() == {}
    scheduler.add(item(2, "b"))
    assert keys(scheduler.plan(0.0, AMPLE)) == ["2"]


def test_bad_items_are_refused() -> None:
    scheduler = drr()
    scheduler.add(item(1))
    for bad in (item(1), item(2, units=0), item(3, cls="training")):
        with pytest.raises(ValueError):
            scheduler.add(bad)
    assert len(scheduler) == 1
    with pytest.raises(ValueError):
        scheduler.budget = 0


def test_a_new_budget_counts_from_the_next_pass() -> None:
    scheduler = drr(20)
    for n in range(20):
        scheduler.add(item(n))
    assert must(scheduler.plan(0.0, AMPLE)).units == 20
    scheduler.budget = 60
    assert must(scheduler.plan(0.0, AMPLE)).units == 60
