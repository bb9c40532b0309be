"""Batch-aware deficit round robin: who gets into the next pass."""

from __future__ import annotations

from collections.abc import Mapping

from .accounts import Accounts
from .cost import CostModel
from .deadlines import Arrivals, Moment
from .flow_queue import FlowQueue
from .items import CLASSES, INTERACTIVE, OFFLINE, Flow, Item, Plan, Room, Share
from .pass_builder import PassBuilder


class DeficitRoundRobin:
    """Deficit round robin (Shreedhar & Varghese, "Efficient Fair Queueing using Deficit Round Robin",
    SIGCOMM 1995) for passes instead of packets: DESIGN.md section 5.

    Each flow has a deficit D, in seconds of device time. An item is dispatched at its price ĉ, and trued
    up to its share φ of the measured time once the pass ran. Credit is given only when no backlogged flow
    can pay for its front.

    Promise. For flows i, j of one class, backlogged and not throttled throughout an interval, S = service
    by price:

        |S_i/w_i - S_j/w_j| ≤ 2Q + (Cmax + E_d)·(1/w_i + 1/w_j)

    with Q the quantum, Cmax the largest price of an item, E_d the debt limit. Proof: both get the same
    credit a weight, so S_i/w_i - S_j/w_j = ΔD_j/w_j - ΔD_i/w_i; and D never falls below -E_d, is below
    Cmax when credit is given and below Cmax + w·Q after it. With one bucket, and no item `alone` or
    urgent, nobody goes into debt: E_d drops out, and the size of a pass is not in the bound. By measured
    cost put Cmax + E_d + 2P·ε for Cmax + E_d, where P passes are in flight and no flow's part in a pass is off
    its price by more than ε.

    Also: never idle while a flow is runnable; charges sum to measured time; a bucket in which a front can
    pay is served within as many passes as there are buckets; an emptied flow forfeits credit but no debt;
    offline work gets what interactive leaves, and `trickle` of the device time always. A plan is O(items
    picked + buckets).
    """

    def __init__(
        self,
        cost: CostModel,
        budget: int,
        *,
        trickle: float = 0.05,
        offline_slice: float = 0.05,
    ) -> None:
        if not 0 <= trickle < 1:
            raise ValueError("the trickle is a fraction of device time below 1")
        self._ledger = Accounts(cost, budget)
        self._rings = {cls: FlowQueue(cost, self._ledger.weights) for cls in CLASSES}
        self._trickle = trickle
        self._offline_slice = offline_slice
        self._arrivals = Arrivals()
        self._arrears = 0.0  # the offline class's own deficit against the interactive one
        self._trickled: set[int] = set()  # passes in flight that were paid from it

    @property
    def budget(self) -> int:
        """Units of a full pass. Set per backbone, from its cost model and its SLOs."""
        return self._ledger.budget

    @budget.setter
    def budget(self, units: int) -> None:
        self._ledger.set_budget(units)

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the vFMs for which one was set; 1 for others. It changes as they do."""
        return self._ledger.weights

    @property
    def max_debt(self) -> float:
        """E_d: half a pass budget's price."""
        return self._ledger.cost.price(self.budget) / 2

    # ---- queues ----

    def add(self, item: Item, *, front: bool = False) -> None:
        self._ledger.admit(item)
        self._arrivals.came(item.units)
        self._rings[item.flow.cls].add(item, front)

    def remove(self, key: str) -> Item | None:
        """Cancelled or expired: a waiting item goes without a charge. None if it does not wait (any more)."""
        item = self._ledger.waiting.pop(key, None)
        if item is not None:
            self._rings[item.flow.cls].remove(item)
        return item

    def pending(self, flow: Flow) -> int:
        state = self._rings[flow.cls].flows.get(flow.vfm)
        return len(state) if state else 0

    def __len__(self) -> int:
        return len(self._ledger.waiting)

    # ---- passes ----

    def plan(self, now: float, room: Room) -> Plan | None:
        """The next pass; earlier ones may still be in flight. None exactly if nothing is runnable. `now`: when it will begin,
        in seconds on the clock of the deadlines."""
        if self._arrears > 0 and self._has_runnable(INTERACTIVE):
            plan = self._plan(OFFLINE, now, room)
            if plan is not None:
                self._trickled.add(plan.number)
                self._arrears -= sum(plan.prices)
                return plan
        plan = self._plan(INTERACTIVE, now, room)
        if plan is None:
            plan = self._plan(OFFLINE, now, room)
            self._arrears = min(self._arrears, 0.0)  # it was served, or has nothing to serve
        return plan

    def _plan(self, cls: str, now: float, room: Room) -> Plan | None:
        ledger, cost = self._ledger, self._ledger.cost
        units = self.budget
        if cls == OFFLINE:
            units = cost.units_within(self._offline_slice, units)
        draft = PassBuilder(self._rings[cls], units, room, self.max_debt)
        draft.fill(Moment(now, cost, self.budget, self._arrivals.rate(now)))
        return ledger.dispatch(draft.items, draft.prices) if draft.items else None

    def _has_runnable(self, cls: str) -> bool:
        return self._rings[cls].soonest() is not None

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """True a pass up to the device time it took, and learn from it. Once, whatever became of its jobs. What each item is
        charged, in seconds."""
        charges = self._ledger.charge(plan, seconds)
        surplus = [price - charge for price, charge in zip(plan.prices, charges, strict=True)]
        self._true_up(plan, surplus)
        if plan.cls == INTERACTIVE and self._has_runnable(OFFLINE):
            self._arrears += seconds * self._trickle / (1 - self._trickle)
        return charges

    def refund(self, plan: Plan) -> None:
        """Undo the price of a pass that failed. Items that run again are put back before that, last one first
        (`add(item, front=True)`): a flow that is empty forfeits credit.
        """
        self._ledger.settle(plan)
        self._true_up(plan, list(plan.prices))

    def _true_up(self, plan: Plan, surplus: list[float]) -> None:
        by_vfm: dict[str, float] = {}
        for item, seconds in zip(plan.items, surplus, strict=True):
            by_vfm[item.flow.vfm] = by_vfm.get(item.flow.vfm, 0.0) + seconds
        ring = self._rings[plan.cls]
        for vfm, seconds in by_vfm.items():
            ring.adjust(vfm, seconds)
        ring.tidy(2 * len(plan.items) + 8)
        if plan.number in self._trickled:
            self._trickled.remove(plan.number)
            self._arrears += sum(surplus)

    # ---- vFMs ----

    def set_weight(self, vfm: str, weight: float) -> None:
        """Its share in both classes, from now on. 1 unless set."""
        self._ledger.set_weight(vfm, weight)
        for ring in self._rings.values():
            ring.reweigh(vfm)

    def throttle(self, flow: Flow) -> None:
        """Skip a flow (its extension is loading): it earns nothing and keeps its deficit and its place."""
        self._rings[flow.cls].throttle(flow.vfm, True)

    def resume(self, flow: Flow) -> None:
        self._rings[flow.cls].throttle(flow.vfm, False)

    def expect(self, flow: Flow, more: bool) -> None:
        """Say if the flow's stream holds unclaimed jobs: while it does, emptying here forfeits no credit."""
        self._rings[flow.cls].expect(flow.vfm, more)

    def forget(self, vfm: str) -> None:
        """A vFM is deleted and its jobs are settled: drop weight, charges and deficits."""
        self._ledger.forget(vfm)
        for ring in self._rings.values():
            ring.forget(vfm)

    def shares(self) -> dict[str, Share]:
        """Every vFM that was charged, weighted or queued here."""
        deficits: dict[str, float] = {}
        for ring in self._rings.values():
            for vfm, flow in ring.flows.items():
                ring.sync(flow)
                deficits[vfm] = deficits.get(vfm, 0.0) + flow.deficit
        return self._ledger.shares(deficits)
