"""Scheduling: who gets into the next pass of a shared backbone. Pure: time and costs are passed in.

items.py   the words: Flow, Item, Room, Plan, Share
cost.py    what a pass costs, learnt online, and who owes how much of it
ledger.py  what every policy keeps: passes in flight, weights, charges
flows.py   a flow's state, and the lanes in which flows wait
ring.py    the flows of one class: deficits and lazy credit
draft.py   one pass in the making
deadlines.py  what deadlines may do to a pass
seats.py   who may hold memory between passes
budget.py  how large a pass may be, for the latency targets of the vFMs
drr.py     batch-aware deficit round robin, the default policy; its docstring is the promise
base.py    what the policies without deficits have in common
fifo.py    arrival order
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

__all__ = [
    "CLASSES",
    "INTERACTIVE",
    "OFFLINE",
    "CostModel",
    "DeficitRoundRobin",
    "Fifo",
    "Flow",
    "Item",
    "KvAdmission",
    "PassBudget",
    "Plan",
    "Room",
    "Scheduler",
    "Share",
    "make_scheduler",
]


class Scheduler(Protocol):
    """What the worker's device task asks of a policy. See `DeficitRoundRobin` for what each call means."""

    budget: int

    @property
    def weights(self) -> Mapping[str, float]: ...
    def add(self, item: Item, *, front: bool = False) -> None: ...
    def remove(self, key: str) -> Item | None: ...
    def pending(self, flow: Flow) -> int: ...
    def __len__(self) -> int: ...
    def plan(self, now: float, room: Room) -> Plan | None: ...
    def charge(self, plan: Plan, seconds: float) -> list[float]: ...
    def refund(self, plan: Plan) -> None: ...
    def set_weight(self, vfm: str, weight: float) -> None: ...
    def throttle(self, flow: Flow) -> None: ...
    def resume(self, flow: Flow) -> None: ...
    def expect(self, flow: Flow, more: bool) -> None: ...
    def forget(self, vfm: str) -> None: ...
    def shares(self) -> dict[str, Share]: ...


def make_scheduler(
    name: str,
    cost: CostModel,
    budget: int,
    *,
    trickle: float = 0.05,
    offline_slice: float = 0.05,
) -> Scheduler:
    """A policy by its name in a fleet file: "drr", or "fifo", which has no classes to trickle or slice."""
    if name == "drr":
        return DeficitRoundRobin(cost, budget, trickle=trickle, offline_slice=offline_slice)
    if name == "fifo":
        return Fifo(cost, budget)
    raise ValueError(f"unknown scheduler {name!r}: drr or fifo")
