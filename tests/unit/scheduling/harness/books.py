"""Prices, charges and true-ups: nothing lost, nothing twice, and an empty flow keeps only its debt."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_worker.scheduling import CostModel, Flow, Item, Plan, Room

from .service import by_flow
from .words import AMPLE, ROUNDING, KnownCost, Make, deficit, flow_queue, item, must
from .world import Case, World


class _Deficits(World):
    """Each deficit, before and after everything but credit."""

    def changed(self, before: dict[str, float], by: dict[str, float]) -> None:
        after = self.deficits()
        for flow, queue in self.queues.items():
            vfm = flow.vfm
            expected = before[vfm] + by.get(vfm, 0.0)
            if not queue and flow not in self.expecting:
                expected = min(0.0, expected)
            assert abs(after[vfm] - expected) <= ROUNDING * (1 + abs(expected)), (vfm, after[vfm], expected)

    def removed(self, flow: Flow, key: str) -> None:
        before = self.deficits()
        super().removed(flow, key)
        self.changed(before, {})

    def planned(self, plan: Plan | None, room: Room) -> None:
        after = self.deficits()
        for flow, queue in self.queues.items():
            picked = sum(it.flow == flow for it in plan.items) if plan else 0
            assert after[flow.vfm] <= 0 or len(queue) > picked or flow in self.expecting

    def charged(self, number: int, plan: Plan, seconds: float) -> None:
        before = self.deficits()
        charges = self.cost.apportion(plan.items, seconds)
        super().charged(number, plan, seconds)
        surplus = [price - charge for price, charge in zip(plan.prices, charges, strict=True)]
        self.changed(before, by_flow(plan, surplus))


def check_deficits(make: Make, case: Case) -> None:
    """A true-up, however late, changes the deficit of each flow by just its own part; a cancelled item by nothing; D ≤ 0 once a
    flow is empty, and its debt stays."""
    _Deficits(make, case).run()


class _Books(World):
    def __init__(self, make: Make, case: Case) -> None:
        super().__init__(make, case)
        self.seconds = 0.0

    def charged(self, number: int, plan: Plan, seconds: float) -> None:
        super().charged(number, plan, seconds)
        self.seconds += seconds
        shares = self.scheduler.shares()
        total = sum(share.charged for share in shares.values())
        assert abs(total - self.seconds) <= ROUNDING * (1 + self.seconds)
        given = {flow.vfm: shares[flow].charged + shares[flow].deficit for flow in self.steady}
        for _, flown in self.flying:
            for it, price in zip(flown.items, flown.prices, strict=True):
                if it.flow.vfm in given:
                    given[it.flow.vfm] += price
        credit = [have / self.weights[vfm] for vfm, have in given.items()]
        assert max(credit) - min(credit) <= ROUNDING * (1 + max(credit))


def check_charged_once(make: Make, case: Case) -> None:
    """What is redelivered or cancelled, waiting or in a pass, is charged once or not at all. Charges sum to the measured time
    of the passes that ran; and what a steady flow was charged, has put down and has left is the credit it was given: for each
    unit of weight the same for all."""
    _Books(make, case).run()


class _Alone(World):
    """The device takes α + β·X, whatever the scheduler believes."""

    def charged(self, number: int, plan: Plan, seconds: float) -> None:
        before = {flow.vfm: share.charged for flow, share in self.scheduler.shares().items()}
        super().charged(number, plan, seconds)
        factor = seconds / (self.alpha + self.beta * plan.units)  # of the noise
        alone = by_flow(plan, [factor * (self.alpha + self.beta * it.units) for it in plan.items])
        paid = {flow.vfm: share.charged - before.get(flow.vfm, 0.0) for flow, share in self.scheduler.shares().items()}
        assert all(paid[vfm] <= alone.get(vfm, 0.0) + ROUNDING * (1 + before.get(vfm, 0.0)) for vfm in paid)
        assert abs(sum(paid.values()) - seconds) <= ROUNDING * (1 + sum(before.values()))


def check_nobody_pays_more_than_alone(make: Make, case: Case) -> None:
    """On a device that takes α + β·X, although prices are off. And a pass is paid by those in it."""
    assert case.noise
    assert not case.adapters
    _Alone(make, case).run()


def check_charges(cost: CostModel, items: Sequence[Item], measured: float) -> None:
    """Charges sum to the measured time, whatever it is; and nobody is charged more than alone if it is what was predicted."""
    charges = cost.apportion(items, measured)
    assert abs(sum(charges) - measured) <= ROUNDING * measured
    segments, heads = {i.segment for i in items} - {None}, {i.head for i in items} - {None}
    predicted = cost.predict(sum(i.units for i in items), len(segments), len(heads))
    for it, charge in zip(items, cost.apportion(items, predicted), strict=True):
        alone = cost.predict(it.units, it.segment is not None, it.head is not None)
        assert 0 <= charge <= alone * (1 + ROUNDING)


def check_debt_survives_idleness(make: Make) -> None:
    """A flow that comes back at once finds its debt; its record goes once passing rounds have paid it."""
    scheduler = make(KnownCost(100), 100)
    scheduler.add(item("heavy", "a", 50))
    plan = must(scheduler.plan(0.0, AMPLE))
    price = sum(plan.prices)
    scheduler.charge(plan, 3 * price)
    scheduler.add(item("again", "a", 50))
    assert deficit(scheduler, "a") == -2 * price
    scheduler.remove("again")
    assert deficit(scheduler, "a") == -2 * price
    for n in range(12):
        scheduler.add(item(n, "b", 50))
        plan = must(scheduler.plan(0.0, AMPLE))
        scheduler.charge(plan, sum(plan.prices))
    assert deficit(scheduler, "a") == 0
    assert not flow_queue(scheduler).flows


def check_settled_once(make: Make) -> None:
    scheduler = make(KnownCost(100), 100)
    scheduler.add(item(1))
    plan = must(scheduler.plan(0.0, AMPLE))
    scheduler.charge(plan, 1.0)
    try:
        scheduler.charge(plan, 1.0)
    except ValueError:
        return
    raise AssertionError("settled twice")
