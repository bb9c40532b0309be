"""Schedulers broken in one way each, for `test_mutants.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fmplex_worker.scheduling import INTERACTIVE, DeficitRoundRobin, Flow, Item, Plan, Room
from fmplex_worker.scheduling.draft import Draft
from fmplex_worker.scheduling.flows import FlowState, Lane
from fmplex_worker.scheduling.ring import Ring

from .harness import KnownCost

# ---- rings ----


class KeepsCredit(Ring):
    """Rule 5 forgotten."""

    def _close(self, flow: FlowState) -> None:
        if flow.front is None and flow.deficit == 0:
            del self.flows[flow.vfm]


class KeepsLateCredit(Ring):
    """Rule 5 at the end of a queue, but not for what a true-up gives back afterwards."""

    def adjust(self, vfm: str, seconds: float) -> None:
        flow = self._flow(vfm)
        self.sync(flow)
        flow.deficit += seconds
        if flow.front is not None:
            self.enter(flow)


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


class PaysTheAbsent(Ring):
    """A flow earns while it is idle, and finds that when it comes back."""

    def sync(self, flow: FlowState) -> None:
        rounds = self.round - flow.round
        super().sync(flow)
        if flow.front is None:
            flow.deficit += rounds * flow.weight * self.quantum

    def _close(self, flow: FlowState) -> None:
        pass


class NeverTruesUp(Ring):
    def adjust(self, vfm: str, seconds: float) -> None:
        pass


class TruesUpTwice(Ring):
    def adjust(self, vfm: str, seconds: float) -> None:
        super().adjust(vfm, 2 * seconds)


class CountsJobs(Ring):
    """A price a job, whatever its size."""

    def adjust(self, vfm: str, seconds: float) -> None:
        pass

    def _quote(self, flow: FlowState) -> None:
        super()._quote(flow)
        flow.price = self._cost.price(16)


class RoundsDown(Ring):
    """The price of whole blocks of eight units: what is left over goes free."""

    def _quote(self, flow: FlowState) -> None:
        super()._quote(flow)
        assert flow.front is not None
        flow.price = self._cost.price(max(1, flow.front.units // 8 * 8))


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
            flow.deficit += 4 * self.quantum
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


class ChargesTheCancelled(Ring):
    def remove(self, item: Item) -> None:
        flow = self.flows[item.flow.vfm]
        flow.deficit -= self._cost.price(item.units)
        super().remove(item)


class SmallestFirst(Ring):
    """Small items overtake large ones of their own flow."""

    def take(self, flow: FlowState) -> tuple[Item, float]:
        taken = super().take(flow)
        if flow.queue:
            flow.queue.move_to_end(min(flow.queue, key=lambda key: flow.queue[key].units), last=False)
            self._next(flow)
        return taken


class PutsBackLast(Ring):
    """What runs again goes to the end of its flow."""

    def add(self, item: Item, front: bool) -> None:
        super().add(item, front=False)


# ---- drafts ----


class CreditsEveryPass(Draft):
    """Credit although somebody is eligible still."""

    def _anchor(self) -> Lane | None:
        self._ring.round += 3
        return super()._anchor()


class CreditsUntilAllCanPay(Draft):
    """It waits for the poorest."""

    def _credit(self) -> bool:
        able = super()._credit()
        due = [entry[0] for lane in self._ring.lanes.values() if lane.peek() for entry in lane.heap]
        self._ring.round = max(self._ring.round, *due, 0)
        return able


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


class BorrowsHalf(Draft):
    """Half of what is allowed."""

    def _may_borrow(self, flow: FlowState) -> bool:
        return flow.deficit - flow.price >= -self._debt / 2


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


class WaitsForRoom(Draft):
    """An item larger than a pass never runs."""

    def _turn(self, lane: Lane, flow: FlowState) -> None:
        if self._fits(flow):
            super()._turn(lane, flow)
        else:
            self._skipped.append(flow)


class StaysInItsBucket(Draft):
    """The busiest bucket first."""

    def _anchor(self) -> Lane | None:
        super()._anchor()
        able = [lane for lane in self._ring.lanes.values() if self._eligible(lane)]
        return max(able, key=lambda lane: lane.live, default=None)


# ---- charges ----


class EqualSplit(KnownCost):
    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        return [seconds / len(items)] * len(items)


class EveryonePaysAll(KnownCost):
    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        return [seconds] * len(items)


class ChargesThePrediction(KnownCost):
    """What the model says, not what was measured."""

    def apportion(self, items: Sequence[Item], seconds: float) -> list[float]:
        segments, heads = {it.segment for it in items} - {None}, {it.head for it in items} - {None}
        units = sum(it.units for it in items)
        return super().apportion(items, self.predict(units, len(segments), len(heads)))


# ---- whole schedulers ----


class PlansNothing(DeficitRoundRobin):
    """An empty pass where there is none to make."""

    def plan(self, now: float, room: Room) -> Plan | None:
        return super().plan(now, room) or Plan(0, INTERACTIVE, None, (), (), 0)


class KeepsTheRefund(DeficitRoundRobin):
    def refund(self, plan: Plan) -> None:
        self._ledger.settle(plan)


class ChargesTwice(DeficitRoundRobin):
    """A pass that is settled can be settled again."""

    def charge(self, plan: Plan, seconds: float) -> None:
        self._ledger._open.add(plan.number)
        super().charge(plan, seconds)


class ChargesTheFailed(DeficitRoundRobin):
    """A pass that failed is charged at its price, and when it runs again, too."""

    def refund(self, plan: Plan) -> None:
        self.charge(plan, sum(plan.prices))


class SparesTheCancelled(DeficitRoundRobin):
    """Who cancels an item that is in a pass already does not pay for it."""

    def remove(self, key: str) -> Item | None:
        item = super().remove(key)
        if item is None:
            self.__dict__.setdefault("spared", set()).add(key)
        return item

    def charge(self, plan: Plan, seconds: float) -> None:
        spared = self.__dict__.get("spared", set())
        paying = [(it, price) for it, price in zip(plan.items, plan.prices, strict=True) if it.key not in spared]
        if not paying:
            return super().refund(plan)
        items, prices = zip(*paying, strict=True)
        super().charge(replace(plan, items=items, prices=prices), seconds * len(items) / len(plan.items))


class ForgetsTheThrottled(DeficitRoundRobin):
    """A flow that was throttled never runs again."""

    def resume(self, flow: Flow) -> None:
        pass
