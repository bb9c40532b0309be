"""The tests' words: a cost model that does not learn, items in one line, what a scheduler says of itself."""

from __future__ import annotations

from collections.abc import Callable

from fmplex_worker.scheduling import INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, Plan, Room
from fmplex_worker.scheduling.flow_queue import FlowQueue

AMPLE = Room(units=10**9, items=10**9)
ROUNDING = 1e-9  # of sums of floats, relative
Make = Callable[[CostModel, int], DeficitRoundRobin]


class KnownCost(CostModel):
    """Coefficients that are given and stay."""

    def __init__(
        self,
        full_pass: int,
        alpha: float = 2.0,
        beta: float = 0.01,
        gamma: float = 0.0,
        delta: float = 0.0,
    ) -> None:
        super().__init__(full_pass)
        known = (alpha, beta, gamma, delta)
        self._theta = [theta * scale for theta, scale in zip(known, self._scale, strict=True)]

    def observe(self, units: int, segments: int, heads: int, seconds: float) -> None:
        pass


def item(
    key: object,
    vfm: object = "a",
    units: int = 10,
    cls: str = INTERACTIVE,
    bucket: object = None,
    alone: bool = False,
    deadline: float | None = None,
) -> Item:
    flow = Flow(str(vfm), cls)
    return Item(str(key), flow, "encode", units, bucket=bucket, alone=alone, deadline=deadline)


def flow_queue(scheduler: DeficitRoundRobin, cls: str = INTERACTIVE) -> FlowQueue:
    return scheduler._queues[cls]


def deficit(scheduler: DeficitRoundRobin, vfm: str, cls: str = INTERACTIVE) -> float:
    share = scheduler.shares().get(Flow(vfm, cls))
    return share.deficit if share else 0.0


def must(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan


def own(plan: Plan) -> list[Item]:
    """The items of the pass's class, without those that ride with it."""
    return [it for it in plan.items if it.flow.cls == plan.cls]
