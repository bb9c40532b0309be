"""First in, first out: the policy without shares, to compare with and for a worker that serves one team."""

from __future__ import annotations

from collections import OrderedDict

from .cost import CostModel
from .items import CLASSES, Flow, Item, Plan, Room, Share
from .ledger import Ledger


class Fifo:
    """Arrival order over all flows and classes. The oldest runnable item fixes the bucket of a pass;
    later ones join it in order until one does not fit. Weights and deadlines change nothing; charges are
    kept, so that both policies report alike. O(waiting) a plan at worst, which the worker's window keeps
    at a few passes.
    """

    def __init__(self, cost: CostModel, budget: int) -> None:
        self._ledger = Ledger(cost, budget)
        self._queue: OrderedDict[str, Item] = OrderedDict()
        self._throttled: set[Flow] = set()

    @property
    def budget(self) -> int:
        """Units of a full pass."""
        return self._ledger.budget

    @budget.setter
    def budget(self, units: int) -> None:
        self._ledger.set_budget(units)

    def add(self, item: Item, *, front: bool = False) -> None:
        self._ledger.admit(item)
        self._queue[item.key] = item
        if front:
            self._queue.move_to_end(item.key, last=False)

    def remove(self, key: str) -> Item | None:
        self._ledger.waiting.pop(key, None)
        return self._queue.pop(key, None)

    def pending(self, flow: Flow) -> int:
        return sum(item.flow == flow for item in self._queue.values())

    def __len__(self) -> int:
        return len(self._queue)

    def plan(self, now: float, room: Room) -> Plan | None:
        picked = self._pick(min(self.budget, room.units), room.rows)
        if not picked:
            return None
        for item in picked:
            del self._queue[item.key]
        return self._ledger.dispatch(picked, [self._ledger.cost.price(item.units) for item in picked])

    def _pick(self, units: int, rows: int) -> list[Item]:
        picked: list[Item] = []
        for item in self._queue.values():
            if units < 1 or len(picked) >= rows:
                break
            if item.flow in self._throttled:
                continue
            if picked:
                if item.alone or item.bucket != picked[0].bucket:
                    continue
                if item.units > units:
                    break
            picked.append(item)
            units = 0 if item.alone else units - item.units
        return picked

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        return self._ledger.charge(plan, seconds)

    def refund(self, plan: Plan) -> None:
        self._ledger.settle(plan)

    def set_weight(self, vfm: str, weight: float) -> None:
        self._ledger.set_weight(vfm, weight)

    def throttle(self, flow: Flow) -> None:
        self._throttled.add(flow)

    def resume(self, flow: Flow) -> None:
        self._throttled.discard(flow)

    def expect(self, flow: Flow, more: bool) -> None:
        """Nothing is forfeited here, so nothing depends on it."""

    def forget(self, vfm: str) -> None:
        self._ledger.forget(vfm)
        self._throttled -= {Flow(vfm, cls) for cls in CLASSES}

    def shares(self) -> dict[str, Share]:
        return self._ledger.shares({})
