"""What the policies without deficits have in common: the ledger, and the flows that are throttled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .accounts import Accounts
from .cost import CostModel
from .items import CLASSES, Flow, Item, Plan, Share


class AccountsPolicy:
    """The `Scheduler` protocol but for the queue: a policy adds `add`, `remove`, `pending` and `plan`."""

    def __init__(self, cost: CostModel, budget: int) -> None:
        self._ledger = Accounts(cost, budget)
        self._throttled: set[Flow] = set()

    @property
    def budget(self) -> int:
        """Units of a full pass."""
        return self._ledger.budget

    @budget.setter
    def budget(self, units: int) -> None:
        self._ledger.set_budget(units)

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the vFMs for which one was set; 1 for others. It changes as they do."""
        return self._ledger.weights

    def __len__(self) -> int:
        return len(self._ledger.waiting)

    def _dispatch(self, picked: Sequence[Item]) -> Plan:
        return self._ledger.dispatch(picked, [self._ledger.cost.price(item.units) for item in picked])

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
        """No credit is forfeited here, so nothing depends on what the streams hold."""

    def forget(self, vfm: str) -> None:
        self._ledger.forget(vfm)
        self._throttled -= {Flow(vfm, cls) for cls in CLASSES}

    def shares(self) -> dict[str, Share]:
        return self._ledger.shares({})
