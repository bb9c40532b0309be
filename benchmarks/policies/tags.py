"""Start-time fair queueing (Goyal, Vin & Cheng, "Start-time Fair Queuing", SIGCOMM 1996), with and without passes."""

from __future__ import annotations

from benchmarks.policies.queues import Queues
from fmplex_worker.scheduling import CostModel, Flow, Item, Plan


class Stfq(Queues):
    """One job at a time: the front with the smallest start tag. S = max(v, F of the flow), F = S + cost ÷ weight, and the
    virtual time v is the start tag of what is being served."""

    one_at_a_time = True

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._now = 0.0
        self._finish: dict[Flow, float] = {}

    def arrived(self, flow: Flow) -> None:
        """Catch up with the virtual time; see `Queues.arrived`."""
        self._finish[flow] = max(self._now, self._finish.get(flow, 0.0))

    def rank(self, flow: Flow) -> float:
        """Rank by start tag; see `Queues.rank`."""
        return self._finish[flow]

    def took(self, flow: Flow, item: Item) -> None:
        """Move the virtual time and the flow's tag; see `Queues.took`."""
        self._now = max(self._now, self._finish[flow])
        self._finish[flow] += self._cost(item) / self.weight(flow)

    def _cost(self, item: Item) -> float:
        return self._accounts.cost.predict(item.units, item.segment is not None, item.head is not None)

    def forget(self, vfm: str) -> None:
        """Drop what is kept of a vFM's flows; see `Scheduler.forget`."""
        super().forget(vfm)
        self._finish = {flow: tag for flow, tag in self._finish.items() if flow.vfm != vfm}


class Bfq(Stfq):
    """The same tags decide who is in a pass, and everybody in it pays the whole pass, as in FMplex's prototype (BFQ). What a
    flow pays is known once the pass has run; until then its part counts."""

    one_at_a_time = False

    def _cost(self, item: Item) -> float:
        return self._accounts.cost.price(item.units)

    def ran(self, plan: Plan, seconds: float) -> None:
        """Charge everybody in the pass the rest of it; see `Queues.ran`."""
        parts: dict[Flow, float] = {}
        for item, price in zip(plan.items, plan.prices, strict=True):
            parts[item.flow] = parts.get(item.flow, 0.0) + price
        for flow, part in parts.items():
            if flow in self._finish:
                self._finish[flow] += (seconds - part) / self.weight(flow)
