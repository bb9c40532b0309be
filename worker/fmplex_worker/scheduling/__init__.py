"""Scheduling: who gets into the next pass of a shared backbone. Pure: time and costs are passed in.

items.py         the terms: Flow, Item, Room, Plan, Share
cost.py          what a pass costs, learnt online, and who owes how much of it
accounts.py      what every policy keeps: passes in flight, weights, charges
flows.py         a flow's state, and the lanes in which flows wait
flow_queue.py    the flows of one class: deficits and lazy credit
pass_builder.py  one pass in the making
deadlines.py     what deadlines may do to a pass
lull.py          when nobody waits for offline passes, so that they may be full
kv_admission.py  which sequences may hold memory between passes
budget.py        how large a pass may be, for the latency targets of the vFMs
target_book.py   the latency targets of the vFMs in use
slack.py         how long the device may be lent to training, so that those are kept
lending.py       what was lent: who has waited for it, and who gets what interactive work leaves
unit_queue.py    whose training unit runs next
drr.py           batch-aware deficit round robin, the default policy; its docstring is the promise
base.py          what the policies without deficits have in common
fifo.py          arrival order
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .budget import PassBudget
from .cost import CostModel
from .drr import DeficitRoundRobin
from .fifo import Fifo
from .items import CLASSES, INTERACTIVE, OFFLINE, Flow, Item, Plan, Room, Share
from .kv_admission import KvAdmission
from .lending import Leftover, LentTime
from .slack import Demand, Due, Loan, Slack
from .target_book import TargetBook
from .unit_queue import UnitQueue

__all__ = [
    "CLASSES",
    "INTERACTIVE",
    "OFFLINE",
    "CostModel",
    "DeficitRoundRobin",
    "Demand",
    "Due",
    "Fifo",
    "Flow",
    "Item",
    "KvAdmission",
    "Leftover",
    "LentTime",
    "Loan",
    "PassBudget",
    "Plan",
    "Room",
    "Scheduler",
    "Share",
    "Slack",
    "TargetBook",
    "UnitQueue",
    "make_scheduler",
]


class Scheduler(Protocol):
    """A policy: it decides who gets into each pass of the worker. Its length is the number of items that wait."""

    budget: int
    """Units of a full pass."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Weights of the vFMs for which one was set (1 for others); the mapping changes as they do."""

    def add(self, item: Item) -> None:
        """Queue an item, last in its flow. Raises `ValueError` if it has no units, an unknown class, or waits already."""

    def remove(self, key: str) -> Item | None:
        """Remove a waiting item that was cancelled or expired, without a charge; None if it does not wait (any more)."""

    def pending(self, flow: Flow) -> int:
        """Count the items of a flow that wait."""

    def __len__(self) -> int: ...

    def plan(self, now: float, room: Room) -> Plan | None:
        """Make the next pass, to begin at `now` (seconds, on the clock of the deadlines); None exactly if nothing can run."""

    def charge(self, plan: Plan, seconds: float) -> list[float]:
        """Settle a pass that took so long, once, whatever became of its jobs. Returns what each item is charged, in seconds."""

    def owe(self, flow: Flow, seconds: float) -> float:
        """Charge a flow for seconds that it took beside the passes. Returns how many units of a full pass cost as much."""

    def set_weight(self, vfm: str, weight: float) -> None:
        """Set the weight of a vFM, in both classes, from now on. Raises `ValueError` unless it is positive."""

    def expect(self, flow: Flow, more: bool) -> None:
        """Say whether the flow's stream holds unclaimed jobs: while it does, emptying here forfeits no credit."""

    def forget(self, vfm: str) -> None:
        """Drop what is kept of a vFM that was deleted. Raises `ValueError` while it has items waiting."""

    def full_units(self, cls: str) -> int:
        """Return the units of a full pass of a class."""

    def shares(self) -> dict[Flow, Share]:
        """Report on every flow that was charged or queued here."""


def make_scheduler(
    name: str,
    cost: CostModel,
    budget: int,
    *,
    trickle: float = 0.05,
    offline_slice: float = 0.05,
) -> Scheduler:
    """Make a policy by its name in a fleet file: "drr", or "fifo", which has no classes to trickle or slice."""
    if name == "drr":
        return DeficitRoundRobin(cost, budget, trickle=trickle, offline_slice=offline_slice)
    if name == "fifo":
        return Fifo(cost, budget)
    raise ValueError(f"unknown scheduler {name!r}: drr or fifo")
