"""Pass builders, charges and whole schedulers broken in one way each, for `test_mutants.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fmplex_worker.scheduling import INTERACTIVE, DeficitRoundRobin, Item, Plan, Room
from fmplex_worker.scheduling.flows import FlowState, Lane
from fmplex_worker.scheduling.pass_builder import PassBuilder

from .harness import KnownCost

# ---- pass builders ----


class CreditsEveryPass(PassBuilder):
    """Credit although somebody is eligible still."""

    def _anchor(self) -> Lane | None:
        self._queue.round += 3
        return super()._anchor()


class CreditsUntilAllCanPay(PassBuilder):
    """It waits for the poorest."""

    def _credit(self) -> bool:
        able = super()._credit()
        due = [entry[0] for lane in self._queue.lanes.values() if lane.peek() for entry in lane.heap]
        self._queue.round = max(self._queue.round, *due, 0)
        return able


class BorrowsWithoutLimit(PassBuilder):
    def _may_borrow(self, flow: FlowState) -> bool:
        return True


class BorrowsWithOneBucket(PassBuilder):
    """Debt before credit."""

    def _pack(self, lane: Lane) -> None:
        self._borrow(lane)


class NeverBorrows(PassBuilder):
    def _borrow(self, lane: Lane) -> None:
        pass


class BorrowsHalf(PassBuilder):
    """Half of what is allowed."""

    def _may_borrow(self, flow: FlowState) -> bool:
        return flow.deficit - flow.price >= -self._debt / 2


class StopsShort(PassBuilder):
    """One round a pass, full or not."""

    def _pack(self, lane: Lane) -> None:
        while not self._full and self._eligible(lane):
            self._serve(lane, self._pop(lane))


class WaitsForCredit(PassBuilder):
    """No pass in a round in which nobody can pay."""

    def _credit(self) -> bool:
        soonest = self._queue.soonest()
        if soonest is None or soonest > self._queue.round + 2:
            self._queue.round += 1
            return False
        return super()._credit()


class WaitsForRoom(PassBuilder):
    """An item larger than a pass never runs."""

    def _serve(self, lane: Lane, flow: FlowState) -> None:
        if self._fits(flow):
            super()._serve(lane, flow)
        else:
            self._skipped.append(flow)


class StaysInItsBucket(PassBuilder):
    """The busiest bucket first."""

    def _anchor(self) -> Lane | None:
        super()._anchor()
        able = [lane for lane in self._queue.lanes.values() if self._eligible(lane)]
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
        return super().plan(now, room) or Plan(0, INTERACTIVE, None, (), (), 0, 0.0)


class ChargesTwice(DeficitRoundRobin):
    """A pass that is settled can be settled again."""

    def charge(self, plan: Plan, seconds: float) -> None:
        self._accounts._open.add(plan.number)
        super().charge(plan, seconds)


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
            self._accounts.settle(plan)
            return self._true_up(plan, list(plan.prices))
        items, prices = zip(*paying, strict=True)
        super().charge(replace(plan, items=items, prices=prices), seconds * len(items) / len(plan.items))
