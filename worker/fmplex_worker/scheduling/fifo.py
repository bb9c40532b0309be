"""First in, first out: the policy without shares, to compare with and for a worker that serves one team."""

from __future__ import annotations

from collections import OrderedDict
from itertools import chain

from .base import AccountsPolicy
from .cost import CostModel
from .items import Flow, Item, Plan, Room


class Fifo(AccountsPolicy):
    """Arrival order over all flows and classes of the window, into which jobs are claimed by arrival too, each
    class into its own room; texts that grow go before what has not begun. The oldest runnable item fixes the
    bucket of a pass; later ones join it in order until one does not fit. Weights and deadlines change nothing;
    charges are kept, so that both policies report alike. O(waiting) a plan at worst, which the worker's window
    keeps at a few passes.
    """

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._queue: OrderedDict[str, Item] = OrderedDict()
        self._growing: OrderedDict[str, Item] = OrderedDict()

    def add(self, item: Item, *, front: bool = False) -> None:
        self._ledger.admit(item)
        line = self._line(item)
        line[item.key] = item
        if front:
            line.move_to_end(item.key, last=False)

    def remove(self, key: str) -> Item | None:
        item = self._ledger.waiting.pop(key, None)
        if item is not None:
            del self._line(item)[key]
        return item

    def pending(self, flow: Flow) -> int:
        return sum(item.flow == flow for item in self._ledger.waiting.values())

    def _line(self, item: Item) -> OrderedDict[str, Item]:
        return self._growing if item.phase == "decode" else self._queue

    def plan(self, now: float, room: Room) -> Plan | None:
        picked = self._pick(min(self.budget, room.units), room.rows)
        if not picked:
            return None
        for item in picked:
            del self._line(item)[item.key]
        return self._dispatch(picked)

    def _pick(self, units: int, rows: int) -> list[Item]:
        picked: list[Item] = []
        for item in chain(self._growing.values(), self._queue.values()):
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
