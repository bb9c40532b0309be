"""Policies that count turns and tokens rather than time."""

from __future__ import annotations

from benchmarks.policies.queues import Queues
from fmplex_worker.scheduling import CostModel, Flow, Item


class RoundRobin(Queues):
    """One job of each flow in turn, whatever it weighs or costs."""

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._turn = 0
        self._last: dict[Flow, int] = {}

    def arrived(self, flow: Flow) -> None:
        """Go to the end of the line; see `Queues.arrived`."""
        self._turn += 1
        self._last[flow] = self._turn

    def rank(self, flow: Flow) -> float:
        """Rank by last turn; see `Queues.rank`."""
        return self._last[flow]

    def took(self, flow: Flow, item: Item) -> None:
        """Go to the end of the line again; see `Queues.took`."""
        self.arrived(flow)

    def forget(self, vfm: str) -> None:
        """Drop what is kept of a vFM's flows; see `Scheduler.forget`."""
        super().forget(vfm)
        self._last = {flow: turn for flow, turn in self._last.items() if flow.vfm != vfm}


class TokenCounters(Queues):
    """Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, algorithm 2): the flow
    that has had the fewest tokens by its weight; one that comes back is lifted to the least of those that are busy, or to
    whoever was served last when nobody is."""

    def __init__(self, cost: CostModel, budget: int) -> None:
        super().__init__(cost, budget)
        self._tokens: dict[Flow, float] = {}
        self._last = 0.0

    def arrived(self, flow: Flow) -> None:
        """Lift the flow's counter; see `Queues.arrived`."""
        busy = [self._tokens[other] for other in self._queues if other != flow and other.cls == flow.cls]
        self._tokens[flow] = max(self._tokens.get(flow, 0.0), min(busy, default=self._last))

    def rank(self, flow: Flow) -> float:
        """Rank by tokens; see `Queues.rank`."""
        return self._tokens[flow]

    def took(self, flow: Flow, item: Item) -> None:
        """Count the item's tokens by weight; see `Queues.took`."""
        self._tokens[flow] += item.units / self.weight(flow)
        self._last = self._tokens[flow]

    def forget(self, vfm: str) -> None:
        """Drop what is kept of a vFM's flows; see `Scheduler.forget`."""
        super().forget(vfm)
        self._tokens = {flow: tokens for flow, tokens in self._tokens.items() if flow.vfm != vfm}
