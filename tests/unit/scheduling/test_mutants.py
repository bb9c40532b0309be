"""The checks have teeth: each of these schedulers is broken in one way, and one of the checks must say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from fmplex_worker.scheduling import CLASSES, INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, Plan, drr
from fmplex_worker.scheduling.draft import Draft
from fmplex_worker.scheduling.flows import FlowState, Lane
from fmplex_worker.scheduling.ring import Ring

from . import harness
from .harness import Case, KnownCost


def with_ring(broken: type[Ring]) -> harness.Make:
    def make(cost: CostModel, budget: int) -> DeficitRoundRobin:
        scheduler = DeficitRoundRobin(cost, budget)
        scheduler._rings = {cls: broken(cost, scheduler._ledger.weights) for cls in CLASSES}
        return scheduler

    return make


def bound(make: harness.Make, buckets: int = 1, noise: float = 0.0) -> None:
    for seed in range(10):
        case = Case((1.0, 2.0, 0.5), (3, 20), 60, buckets, in_flight=1, noise=noise, seed=seed)
        harness.check_service_bound(make, case)


def never_idle(make: harness.Make) -> None:
    for seed in range(20):
        harness.check_never_idle(make, seed, buckets=2)


# ---- rings ----


class KeepsCredit(Ring):
    """Rule 5 forgotten."""

    def _close(self, flow: FlowState) -> None:
        if flow.front is None and flow.deficit == 0:
            del self.flows[flow.vfm]


class ForgivesDebt(Ring):
    """An emptied flow starts afresh."""

    def _close(self, flow: FlowState) -> None:
        if flow.front is None:
            self.flows.pop(flow.vfm, None)


class PaysTheThrottled(Ring):
    def sync(self, flow: FlowState) -> None:
        if flow.throttled:
            flow.deficit += (self.round - flow.round) * flow.weight * self.quantum
        super().sync(flow)


class NeverTruesUp(Ring):
    def adjust(self, vfm: str, seconds: float) -> None:
        pass


class CountsJobs(Ring):
    """A price a job, whatever its size."""

    def adjust(self, vfm: str, seconds: float) -> None:
        pass

    def _quote(self, flow: FlowState) -> None:
        super()._quote(flow)
        flow.price = self._cost.price(16)


class StartsInDebt(Ring):
    """A newcomer pays for what others had before it came."""

    def _flow(self, vfm: str) -> FlowState:
        new = vfm not in self.flows
        flow = super()._flow(vfm)
        if new:
            flow.deficit = -20 * self.quantum
        return flow


class GiftForComing(Ring):
    """Credit for a flow that becomes busy."""

    def add(self, item: Item, front: bool) -> None:
        flow = self._flow(item.flow.vfm)
        if flow.front is None:
            flow.deficit += 20 * self.quantum
        super().add(item, front)


class ServesTheThrottled(Ring):
    def throttle(self, vfm: str, throttled: bool) -> None:
        pass


class IgnoresWeights(Ring):
    def reweigh(self, vfm: str) -> None:
        pass

    def _flow(self, vfm: str) -> FlowState:
        flow = super()._flow(vfm)
        flow.weight = 1.0
        return flow


RINGS: list[tuple[type[Ring], Callable[[harness.Make], None]]] = [
    (KeepsCredit, harness.check_emptied_flow_keeps_only_debt),
    (ForgivesDebt, harness.check_debt_survives_idleness),
    (PaysTheThrottled, harness.check_throttled_earns_nothing),
    (NeverTruesUp, lambda make: harness.check_long_run_shares(make, bias=2.5)),
    (IgnoresWeights, bound),
    (CountsJobs, lambda make: harness.check_no_gain(make, 1, (60,))),
    (GiftForComing, lambda make: harness.check_no_gain(make, 1, (16,), visits=10)),
    (GiftForComing, lambda make: harness.check_no_gain(make, 1, (16,), visits=20)),
    (GiftForComing, lambda make: harness.check_no_gain(make, 1, (3,), visits=40)),
    (StartsInDebt, lambda make: harness.check_newcomer(make, 4, 8, 10, 1)),
    (ServesTheThrottled, never_idle),
]


@pytest.mark.parametrize(("broken", "check"), RINGS, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_rings_are_caught(broken: type[Ring], check: Callable[[harness.Make], None]) -> None:
    check(with_ring(Ring))
    with pytest.raises(AssertionError):
        check(with_ring(broken))


# ---- drafts ----


class CreditsEveryPass(Draft):
    """Credit although somebody is eligible still."""

    def _anchor(self) -> Lane | None:
        self._ring.round += 3
        return super()._anchor()


class BorrowsWithoutLimit(Draft):
    def _may_borrow(self, flow: FlowState) -> bool:
        return True


class BorrowsWithOneBucket(Draft):
    """Debt before credit."""

    def _pack(self, lane: Lane) -> None:
        self._borrow(lane)


class NeverBorrows(Draft):
    def _borrow(self, lane: Lane) -> None:
        pass


class StopsShort(Draft):
    """One round a pass, full or not."""

    def _pack(self, lane: Lane) -> None:
        while not self._full and self._eligible(lane):
            self._turn(lane, self._pop(lane))


class WaitsForCredit(Draft):
    """No pass in a round in which nobody can pay."""

    def _credit(self) -> bool:
        soonest = self._ring.soonest()
        if soonest is None or soonest > self._ring.round + 2:
            self._ring.round += 1
            return False
        return super()._credit()


class StaysInItsBucket(Draft):
    """The busiest bucket first."""

    def _anchor(self) -> Lane | None:
        super()._anchor()
        able = [lane for lane in self._ring.lanes.values() if self._eligible(lane)]
        return max(able, key=lambda lane: lane.live, default=None)


DRAFTS: list[tuple[type[Draft], Callable[[harness.Make], None]]] = [
    (CreditsEveryPass, bound),
    (BorrowsWithoutLimit, lambda make: bound(make, buckets=3)),
    (BorrowsWithOneBucket, bound),
    (NeverBorrows, lambda make: harness.check_full_passes(make, 1, (2,), buckets=4)),
    (StopsShort, lambda make: harness.check_full_passes(make, 1, (2,), buckets=1)),
    (WaitsForCredit, never_idle),
    (StaysInItsBucket, lambda make: harness.check_rare_bucket(make, 1, buckets=3)),
]


@pytest.mark.parametrize(("broken", "check"), DRAFTS, ids=lambda x: getattr(x, "__name__", ""))
def test_broken_drafts_are_caught(
    broken: type[Draft], check: Callable[[harness.Make], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(DeficitRoundRobin)
    monkeypatch.setattr(drr, "Draft", broken)
    with pytest.raises(AssertionError):
        check(DeficitRoundRobin)


# ---- charges ----


class EqualSplit(KnownCost):
    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        return [seconds / len(items)] * len(items)


class EveryonePaysAll(KnownCost):
    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        return [seconds] * len(items)


@pytest.mark.parametrize("broken", [EqualSplit, EveryonePaysAll])
def test_broken_charges_are_caught(broken: type[KnownCost]) -> None:
    flow = Flow("a", INTERACTIVE)
    items = [Item("1", flow, "encode", 500), Item("2", flow, "encode", 1)]
    harness.check_charges(KnownCost(512), items)
    with pytest.raises(AssertionError):
        harness.check_charges(broken(512), items)


def test_refunds_that_are_forgotten_are_caught() -> None:
    class Keeps(DeficitRoundRobin):
        def refund(self, plan: Plan) -> None:
            self._ledger.settle(plan)

    harness.check_refunds(DeficitRoundRobin, 1)
    with pytest.raises(AssertionError):
        harness.check_refunds(Keeps, 1)


def test_charging_twice_is_caught() -> None:
    class Forgetful(DeficitRoundRobin):
        def charge(self, plan: Plan, seconds: float) -> None:
            self._ledger._open.add(plan.number)
            super().charge(plan, seconds)

    with pytest.raises(AssertionError):
        harness.check_settled_once(Forgetful)
