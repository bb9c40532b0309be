"""What the policies without deficits have in common: the accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .accounts import Accounts
from .cost import CostModel
from .items import Flow, Item, Plan, Share


class BasePolicy:
    """The `Scheduler` protocol but for the queue: a policy adds `add`, `remove`, `pending` and `plan`. `budget`: units of a full
    pass."""

    def __init__(self, cost: CostModel, budget: int) -> None:
        self._accounts = Accounts(cost, budget)

    @property
    def budget(self) -> int:
        """Units of a full pass."""
        return self._accounts.budget

    @budget.setter
    def budget(self, units: int) -> None:
        self._accounts.set_budget(units)

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the vFMs for which one was set (1 for others); the mapping changes as they do."""
        return self._accounts.weights

    def __len__(self) -> int:
        return len(self._accounts.waiting)

    def _dispatch(self, picked: Sequence[Item]) -> Plan:
        return self._accounts.dispatch(picked, [self._accounts.cost.price(item.units) for item in picked])

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """Settle a pass that took so long; see `Scheduler.charge`."""
        return self._accounts.charge(plan, seconds)

    def owe(self, flow: Flow, seconds: float) -> float:
        """Charge a flow for seconds beside the passes; see `Scheduler.owe`."""
        return self._accounts.owe(flow, seconds)

    def set_weight(self, vfm: str, weight: float) -> None:
        """Set the weight of a vFM, which is kept for reports; see `Scheduler.set_weight`."""
        self._accounts.set_weight(vfm, weight)

    def expect(self, flow: Flow, more: bool) -> None:
        """Do nothing: no credit is forfeited here, so nothing depends on what the streams hold; see `Scheduler.expect`."""

    def forget(self, vfm: str) -> None:
        """Drop weight and charges of a vFM; see `Scheduler.forget`."""
        self._accounts.forget(vfm)

    def full_units(self, cls: str) -> int:
        """Return the units of a full pass, the same for both classes; see `Scheduler.full_units`."""
        return self.budget

    def shares(self) -> dict[Flow, Share]:
        """Report on every flow, without deficits; see `Scheduler.shares`."""
        return self._accounts.shares({})
