"""First in, first out: the policy without shares, to compare with and for a worker that serves one team."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from .base import BasePolicy
from .cost import CostModel
from .items import Flow, Item, Plan, Room


class Fifo(BasePolicy):
    """Arrival order over all flows and classes of the jobs here, which are claimed by arrival too, each class
    into its own room; texts that grow go before what has not begun. The oldest runnable item fixes the
    bucket of a pass; later ones join it in order until one does not fit. Weights and deadlines change nothing;
    charges are kept, so that both policies report alike. O(waiting) a plan at worst, which the worker's claim
    room keeps at a few passes.
    """

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._queue: OrderedDict[str, Item] = OrderedDict()
        self._growing: OrderedDict[str, Item] = OrderedDict()

    def add(self, item: Item) -> None:
        """Queue an item, last of its phase; see `Scheduler.add`."""
        self._accounts.admit(item)
        self._queue_for(item)[item.key] = item

    def remove(self, key: str) -> Item | None:
        """Remove a waiting item; see `Scheduler.remove`."""
        item = self._accounts.waiting.pop(key, None)
        if item is not None:
            del self._queue_for(item)[key]
        return item

    def pending(self, flow: Flow) -> int:
        """Count the items of a flow that wait."""
        return sum(item.flow == flow for item in self._accounts.waiting.values())

    def _queue_for(self, item: Item) -> OrderedDict[str, Item]:
        return self._growing if item.phase == "decode" else self._queue

    def plan(self, now: float, room: Room) -> Plan | None:
        """Make the next pass from the oldest items; see `Scheduler.plan`."""
        picked = self._pick(min(self.budget, room.units), room.items)
        if not picked:
            return None
        for item in picked:
            del self._queue_for(item)[item.key]
        return self._dispatch(picked)

    def _pick(self, units: int, most: int) -> list[Item]:
        picked: list[Item] = []
        for item in chain(self._growing.values(), self._queue.values()):
            if units < 1 or len(picked) >= most:
                break
            if picked:
                if item.alone or item.bucket != picked[0].bucket:
                    continue
                if item.units > units:
                    break
            picked.append(item)
            units = 0 if item.alone else units - item.units
        return picked
