"""What a flow's jobs took beside the passes is charged like device time: others get as much before it goes on."""

from __future__ import annotations

import pytest

from fmplex_worker.scheduling import INTERACTIVE, OFFLINE, DeficitRoundRobin, Fifo, Flow, Scheduler

from .harness import AMPLE, KnownCost
from .harness.words import deficit, item, must

BUDGET = 50
A = Flow("a", INTERACTIVE)


def fresh() -> DeficitRoundRobin:
    return DeficitRoundRobin(KnownCost(BUDGET), BUDGET)


def serve(scheduler: DeficitRoundRobin, passes: int, vfms: str = "ab") -> dict[str, float]:
    """Run passes, of flows that always have work; return the device time that each was charged."""
    got = dict.fromkeys(vfms, 0.0)
    for n in range(passes):
        for vfm in vfms:
            while scheduler.pending(Flow(vfm, INTERACTIVE)) < 10:
                scheduler.add(item(f"{vfm}{n}-{scheduler.pending(Flow(vfm, INTERACTIVE))}", vfm))
        plan = must(scheduler.plan(0.0, AMPLE))
        for it, charge in zip(plan.items, scheduler.charge(plan, plan.seconds), strict=True):
            got[it.flow.vfm] += charge
    return got


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_others_get_as_much_by_weight_before_it_goes_on(weight: float) -> None:
    scheduler = fresh()
    scheduler.set_weight("b", weight)
    serve(scheduler, 20)
    scheduler.owe(A, 30.0)
    got = serve(scheduler, 400)
    most = 3 * scheduler.max_debt
    assert got["b"] / weight - got["a"] == pytest.approx(30.0, abs=most * (1 + 1 / weight))


def test_alone_it_waits_for_nobody() -> None:
    scheduler = fresh()
    scheduler.add(item(0))
    scheduler.owe(A, 1000.0)
    assert scheduler.plan(0.0, AMPLE) is not None


def test_before_anything_was_queued() -> None:
    """The first job of a worker was slow to prepare, and was refused."""
    scheduler = fresh()
    scheduler.owe(A, 3.0)
    assert (deficit(scheduler, "a"), scheduler.shares()[A].charged) == (-3.0, 3.0)
    got = serve(scheduler, 200)
    assert got["b"] - got["a"] == pytest.approx(3.0, abs=6 * scheduler.max_debt)


def test_an_idle_flow_pays_by_waiting() -> None:
    scheduler = fresh()
    serve(scheduler, 5)
    scheduler.owe(Flow("idle", INTERACTIVE), 1.0)
    serve(scheduler, 200)
    assert deficit(scheduler, "idle") == 0


def test_classes_owe_for_themselves() -> None:
    scheduler = fresh()
    serve(scheduler, 5)
    before = deficit(scheduler, "a")
    scheduler.owe(Flow("a", OFFLINE), 2.0)
    assert (deficit(scheduler, "a"), deficit(scheduler, "a", OFFLINE)) == (before, -2.0)
    got = serve(scheduler, 100)
    assert got["a"] == pytest.approx(got["b"], rel=0.1), "interactive jobs do not pay for offline ones"


@pytest.mark.parametrize("policy", [DeficitRoundRobin, Fifo])
def test_it_is_reported_and_told_in_units(policy: type[DeficitRoundRobin] | type[Fifo]) -> None:
    cost = KnownCost(BUDGET)
    scheduler: Scheduler = policy(cost, BUDGET)
    assert scheduler.owe(A, 2.0) == pytest.approx(2.0 / cost.price(1))
    assert scheduler.shares()[A].charged == 2.0
