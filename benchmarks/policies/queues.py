"""The common part of the policies: a queue a flow. A policy ranks flows; the one that ranks lowest is served next."""

from __future__ import annotations

from collections import OrderedDict

from fmplex_worker.scheduling import CLASSES, CostModel, Flow, Item, Plan, Room
from fmplex_worker.scheduling.base import BasePolicy


class Queues(BasePolicy):
    """The `Scheduler` protocol but for `rank`, `took` and `ran`. Interactive flows first; offline ones only when there are
    none. O(flows with work) an item, which a comparison can afford."""

    one_at_a_time = False

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._queues: dict[Flow, OrderedDict[str, Item]] = {}

    # --- what a policy decides ---

    def arrived(self, flow: Flow) -> None:
        """Note that a flow that had nothing to do has work now."""

    def rank(self, flow: Flow) -> float:
        """Return the flow's rank: the lowest is served first, and of equals the one that became busy first."""
        raise NotImplementedError

    def took(self, flow: Flow, item: Item) -> None:
        """Note that the flow's front goes into the pass that is being made."""

    def ran(self, plan: Plan, seconds: float) -> None:
        """Note how long a pass has taken."""

    # --- the scheduler's calls ---

    def weight(self, flow: Flow) -> float:
        """Return the weight of the flow's vFM."""
        return self._accounts.weights.get(flow.vfm, 1.0)

    def add(self, item: Item) -> None:
        """Queue an item; see `Scheduler.add`."""
        self._accounts.admit(item)
        if item.flow not in self._queues:
            self._queues[item.flow] = OrderedDict()
            self.arrived(item.flow)
        self._queues[item.flow][item.key] = item

    def remove(self, key: str) -> Item | None:
        """Take an item out; see `Scheduler.remove`."""
        item = self._accounts.waiting.pop(key, None)
        if item is not None:
            self._drop(item)
        return item

    def _drop(self, item: Item) -> None:
        queue = self._queues[item.flow]
        del queue[item.key]
        if not queue:
            del self._queues[item.flow]

    def pending(self, flow: Flow) -> int:
        """Count a flow's items; see `Scheduler.pending`."""
        return len(self._queues.get(flow, ()))

    def busy(self, cls: str) -> list[Flow]:
        """Return the flows of a class that have work."""
        return [flow for flow in self._queues if flow.cls == cls]

    def plan(self, now: float, room: Room) -> Plan | None:
        """Make the next pass; see `Scheduler.plan`."""
        for cls in CLASSES:
            if picked := self._fill(cls, min(self.budget, room.units), room.items):
                return self._dispatch(picked)
        return None

    def _fill(self, cls: str, units: int, most: int) -> list[Item]:
        picked: list[Item] = []
        left = set(self.busy(cls))
        while left and units > 0 and len(picked) < most:
            flow = min((f for f in self._queues if f in left), key=self.rank)
            item = next(iter(self._queues[flow].values()))
            if picked and (item.alone or item.bucket != picked[0].bucket):
                left.discard(flow)
                continue
            if picked and item.units > units:
                break  # it is the next one's turn; smaller ones must not pass it
            self._drop(item)
            picked.append(item)
            self.took(flow, item)
            if flow not in self._queues:
                left.discard(flow)
            units = 0 if item.alone or self.one_at_a_time else units - item.units
        return picked

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """Charge a pass that has run; see `Scheduler.charge`."""
        charges = super().charge(plan, seconds)
        self.ran(plan, seconds)
        return charges
