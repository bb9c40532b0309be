"""Batch-aware deficit round robin: who gets into the next pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from .accounts import Accounts
from .cost import CostModel
from .deadlines import Arrivals, Moment
from .flow_queue import FlowQueue
from .items import CLASSES, INTERACTIVE, OFFLINE, Flow, Item, Plan, Room, Share
from .lull import Lull
from .pass_builder import PassBuilder

_RIDES = 0.375  # of a slice: who comes while a pass runs waits for it and for the next, and the longer they are, the more come


class DeficitRoundRobin:
    """Deficit round robin (Shreedhar & Varghese, "Efficient Fair Queueing using Deficit Round Robin",
    SIGCOMM 1995) for passes instead of packets: docs/scheduling.md.

    Each flow has a deficit D, in seconds of device time. An item is dispatched at its price ĉ, and trued
    up to its share φ of the measured time once the pass ran. Credit is given only when no backlogged flow
    can pay for its front.

    Promise. For flows i, j of one class, backlogged throughout an interval, S = service by price:

        |S_i/w_i - S_j/w_j| ≤ 2Q + (Cmax + E_d)·(1/w_i + 1/w_j)

    with Q the quantum, Cmax the largest price of an item, E_d the debt limit. Proof: both get the same
    credit a weight, so S_i/w_i - S_j/w_j = ΔD_j/w_j - ΔD_i/w_i; and D never falls below -E_d, is below
    Cmax when credit is given and below Cmax + w·Q after it. With one bucket, and no item `alone` or
    urgent, nobody goes into debt: E_d drops out, and the size of a pass is not in the bound. By measured
    cost put Cmax + E_d + 2P·ε for Cmax + E_d, where P passes are in flight and no flow's part in a pass is off
    its price by more than ε.

    Also: never idle while a flow is runnable; charges sum to measured time; a bucket in which a front can
    pay is served within as many passes as there are buckets; an emptied flow forfeits credit but no debt;
    offline work gets what interactive leaves, and `trickle` of the device time always; what of it rides in an
    interactive pass makes that longer by a part of a slice. A plan is O(items picked + buckets).

    `budget`: units of a full pass; `offline_slice`: seconds that an offline pass may take, but in a lull. Raises `ValueError`
    unless `trickle` is a fraction below 1.
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
        self._accounts = Accounts(cost, budget)
        self._queues = {cls: FlowQueue(cost, self._accounts.weights) for cls in CLASSES}
        self._trickle = trickle
        self._offline_slice = offline_slice
        self._arrivals = Arrivals()
        self._lull = Lull()
        self._before = OFFLINE  # the class of the last pass
        self._lulled = True  # whether there was a lull as the last pass was made
        self._arrears = 0.0  # the offline class's own deficit against the interactive one
        self._trickled: set[int] = set()  # passes in flight that were paid from it

    @property
    def budget(self) -> int:
        """Units of a full pass, set per backbone from its cost model and its latency targets."""
        return self._accounts.budget

    @budget.setter
    def budget(self, units: int) -> None:
        self._accounts.set_budget(units)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the vFMs for which one was set (1 for others); the mapping changes as they do."""
        return self._accounts.weights

    @property
    def max_debt(self) -> float:
        """E_d: half a pass budget's price."""
        return self._accounts.cost.price(self.budget) / 2

    # ---- queues ----

    def add(self, item: Item) -> None:
        """Queue an item, last in its flow; see `Scheduler.add`."""
        self._accounts.admit(item)
        self._arrivals.record(item.units)
        self._queues[item.flow.cls].add(item)

    def remove(self, key: str) -> Item | None:
        """Remove a waiting item that was cancelled or expired, without a charge; see `Scheduler.remove`."""
        item = self._accounts.waiting.pop(key, None)
        if item is not None:
            self._queues[item.flow.cls].remove(item)
        return item

    def pending(self, flow: Flow) -> int:
        """Count the items of a flow that wait."""
        state = self._queues[flow.cls].flows.get(flow.vfm)
        return len(state) if state else 0

    def __len__(self) -> int:
        return len(self._accounts.waiting)

    # ---- passes ----

    def plan(self, now: float, room: Room) -> Plan | None:
        """Make the next pass; earlier ones may still be in flight. None exactly if nothing is runnable. `now`: when it will
        begin, in seconds on the clock of the deadlines."""
        wanted = self._has_runnable(INTERACTIVE)
        if wanted:
            self._lull.end(now)
        self._lulled = self._lull.lasts(now)
        if self._arrears > 0 and wanted:
            plan = self._plan(OFFLINE, now, room)
            if plan is not None:
                self._trickled.add(plan.number)
                self._arrears -= sum(plan.prices)
                return plan
        plan = self._plan(INTERACTIVE, now, room)
        if plan is None:
            plan = self._plan(OFFLINE, now, room)
            self._arrears = self._after_spare(sum(plan.prices) if plan is not None else 0.0)
        return plan

    def _plan(self, cls: str, now: float, room: Room) -> Plan | None:
        builder = PassBuilder(self._queues[cls], self.full_units(cls), room, self.max_debt)
        builder.fill(Moment(now, self._accounts.cost, self.budget, self._arrivals.rate(now)))
        if not builder.items:
            return None
        items, prices = builder.items, builder.prices
        # Who waited for an offline pass is not made to wait once more.
        if room.riders and cls == self._before == INTERACTIVE and self._has_runnable(OFFLINE):
            riders = self._riders(items, now, builder.left)
            items, prices = items + riders.items, prices + riders.prices
        self._before = cls
        return self._accounts.dispatch(items, prices)

    def _riders(self, items: Sequence[Item], now: float, left: Room) -> PassBuilder:
        """Pick offline items that go with these interactive ones: as many as take a part of a slice, and none that would make one
        of these late."""
        units, cost = sum(item.units for item in items), self._accounts.cost
        seconds = cost.predict_pass(units)
        in_time = (item.deadline - now for item in items if item.deadline is not None)
        longest = min(seconds + _RIDES * self._offline_slice, min((s for s in in_time if s >= seconds), default=inf))
        riders = PassBuilder(
            self._queues[OFFLINE], cost.units_within(longest, self.budget) - units, left, self.max_debt
        )
        if all(item.phase == "encode" for item in items):  # a text that grows is in many passes: all would take longer
            riders.ride(items[0].bucket)
        return riders

    def _after_spare(self, seconds: float) -> float:
        """Return what the offline class is due once it got so much that nobody else wanted. That counts, so that none of its
        passes comes before a job that waits as long as there are others; but no more than a slice: a night of it is not
        held against the day."""
        return max(min(self._arrears, 0.0) - seconds, min(self._arrears, -self._offline_slice))

    def full_units(self, cls: str) -> int:
        """Return the units of a full pass of a class: of offline work, while interactive jobs come, what is expected to take no
        longer than its slice."""
        if cls == INTERACTIVE or self._lulled:
            return self.budget
        return self._accounts.cost.units_within(self._offline_slice, self.budget)

    def _has_runnable(self, cls: str) -> bool:
        return self._queues[cls].soonest() is not None

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """Settle a pass by the device time it took, and learn from it: once, whatever became of its jobs. Returns what each item
        is charged, in seconds."""
        charges = self._accounts.charge(plan, seconds)
        surplus = [price - charge for price, charge in zip(plan.prices, charges, strict=True)]
        self._true_up(plan, surplus)
        if plan.cls == INTERACTIVE:
            rode = sum(charge for item, charge in zip(plan.items, charges, strict=True) if item.flow.cls == OFFLINE)
            due = seconds * self._trickle / (1 - self._trickle) if self._has_runnable(OFFLINE) else 0.0
            self._arrears = max(self._arrears + due - rode, min(self._arrears, -self._offline_slice))
        return charges

    def _true_up(self, plan: Plan, surplus: list[float]) -> None:
        by_flow: dict[Flow, float] = {}
        for item, seconds in zip(plan.items, surplus, strict=True):
            by_flow[item.flow] = by_flow.get(item.flow, 0.0) + seconds
        for flow, seconds in by_flow.items():
            self._queues[flow.cls].adjust(flow.vfm, seconds)
        for cls in {flow.cls for flow in by_flow}:
            self._queues[cls].tidy(2 * len(plan.items) + 8)
        if plan.number in self._trickled:
            self._trickled.remove(plan.number)
            self._arrears += sum(surplus)

    def owe(self, flow: Flow, seconds: float) -> float:
        """Charge a flow for seconds that it took beside the passes; it waits while others take as many. See `Scheduler.owe`."""
        self._queues[flow.cls].adjust(flow.vfm, -seconds)
        return self._accounts.owe(flow, seconds)

    # ---- vFMs ----

    def set_weight(self, vfm: str, weight: float) -> None:
        """Set the weight of a vFM, in both classes, from now on: 1 unless set. Raises `ValueError` unless it is positive."""
        self._accounts.set_weight(vfm, weight)
        for queue in self._queues.values():
            queue.reweigh(vfm)

    def expect(self, flow: Flow, more: bool) -> None:
        """Say whether the flow's stream holds unclaimed jobs: while it does, emptying here forfeits no credit."""
        self._queues[flow.cls].expect(flow.vfm, more)

    def forget(self, vfm: str) -> None:
        """Drop weight, charges and deficits of a vFM that is deleted and whose jobs are settled; see `Scheduler.forget`."""
        self._accounts.forget(vfm)
        for queue in self._queues.values():
            queue.forget(vfm)

    def shares(self) -> dict[Flow, Share]:
        """Report on every flow that was charged or queued here."""
        deficits: dict[Flow, float] = {}
        for cls, queue in self._queues.items():
            for vfm, flow in queue.flows.items():
                queue.sync(flow)
                deficits[Flow(vfm, cls)] = flow.deficit
        return self._accounts.shares(deficits)
