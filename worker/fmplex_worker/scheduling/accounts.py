"""The accounts that every policy keeps: waiting items, passes in flight, each vFM's weight, and what its flows were charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite

from .cost import CostModel
from .items import CLASSES, Flow, Item, Plan, Share


class Accounts:
    """Accounts of one backbone's passes, priced by `cost`. `budget`: units of a full pass."""

    def __init__(self, cost: CostModel, budget: int) -> None:
        self.cost = cost
        self.set_budget(budget)
        self.weights: dict[str, float] = {}
        self.charged: dict[Flow, float] = {}
        self.waiting: dict[str, Item] = {}
        self._open: set[int] = set()
        self._last = 0

    def set_budget(self, units: int) -> None:
        """Set the units of a full pass, over which the cost model spreads what a pass costs in any case."""
        if units < 1:
            raise ValueError("a pass has at least one unit")
        self.budget = units
        self.cost.full_pass = units

    def admit(self, item: Item) -> None:
        """Note an item as waiting. Raises `ValueError` if it has no units, an unknown class, or waits already."""
        if item.units < 1:
            raise ValueError(f"item {item.key!r} has no units: it would run for ever on no credit")
        if item.flow.cls not in CLASSES:
            raise ValueError(f"unknown class {item.flow.cls!r}")
        if item.key in self.waiting:
            raise ValueError(f"item {item.key!r} is waiting already")
        self.waiting[item.key] = item

    def set_weight(self, vfm: str, weight: float) -> None:
        """Set the weight of a vFM. Raises `ValueError` unless it is positive."""
        if not (isfinite(weight) and weight > 0):
            raise ValueError(f"a weight is a positive number, not {weight!r}")
        self.weights[vfm] = weight

    def dispatch(self, items: Sequence[Item], prices: Sequence[float]) -> Plan:
        """Take the picked items out of those that wait, as a plan in flight."""
        self._last += 1
        self._open.add(self._last)
        for item in items:
            del self.waiting[item.key]
        units = sum(item.units for item in items)
        first = items[0]
        seconds = self.cost.predict(units, *_extras(items))
        return Plan(self._last, first.flow.cls, first.bucket, tuple(items), tuple(prices), units, seconds)

    def settle(self, plan: Plan) -> None:
        """Close a plan in flight. Raises `ValueError` if it is settled already."""
        if plan.number not in self._open:
            raise ValueError(f"pass {plan.number} is settled already")
        self._open.remove(plan.number)

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """Settle a pass that ran: teach the cost model, then charge each item its φ. Returns the charges, in seconds."""
        if not (isfinite(seconds) and seconds >= 0):
            raise ValueError(f"a pass takes a finite time, not {seconds!r}")
        self.settle(plan)
        self.cost.observe(plan.units, *_extras(plan.items), seconds)
        charges = self.cost.apportion(plan.items, seconds)
        for item, charge in zip(plan.items, charges, strict=True):
            self.charged[item.flow] = self.charged.get(item.flow, 0.0) + charge
        return charges

    def owe(self, flow: Flow, seconds: float) -> float:
        """Charge a flow for seconds beside the passes; return the units of a full pass that cost as much."""
        self.charged[flow] = self.charged.get(flow, 0.0) + seconds
        return seconds / self.cost.price(1)

    def shares(self, deficits: Mapping[Flow, float]) -> dict[Flow, Share]:
        """Report on every flow that was charged, waits or has a deficit."""
        charged = self.charged
        waiting = Counter(item.flow for item in self.waiting.values())
        return {
            flow: Share(self.weights.get(flow.vfm, 1.0), charged.get(flow, 0.0), deficits.get(flow, 0.0), waiting[flow])
            for flow in sorted(charged.keys() | deficits.keys() | waiting.keys())
        }

    def forget(self, vfm: str) -> None:
        """Drop weight and charges of a vFM. Raises `ValueError` while it has items waiting."""
        if any(item.flow.vfm == vfm for item in self.waiting.values()):
            raise ValueError(f"{vfm!r} has items waiting")
        self.weights.pop(vfm, None)
        for cls in CLASSES:
            self.charged.pop(Flow(vfm, cls), None)


def _extras(items: Sequence[Item]) -> tuple[int, int]:
    """Count the adapter segments and the heads of a pass."""
    return len({item.segment for item in items} - {None}), len({item.head for item in items} - {None})
