"""The flows of one class: their deficits, their places in the ring, and credit that costs nothing to give."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from heapq import heappop, heappush
from math import ceil

from .cost import CostModel
from .flows import FlowState, Lane, lane_of
from .items import Item

_SMOOTH = 1 / 32
_DRIFT = 2.0  # the quantum follows the mean price once that is off by this factor


class FlowQueue:
    """The flows of one class, with deficits in seconds. To credit all is to advance `round`; each one's part is computed on
    touch.

    A backlogged flow is entered in its lane under the round in which it will be able to pay, then its
    place in the ring. So eligible flows (that round has come) surface in ring order, and the next round
    worth going to is at the top.
    """

    def __init__(self, cost: CostModel, weights: Mapping[str, float]) -> None:
        self._cost = cost
        self._weights = weights
        self.flows: dict[str, FlowState] = {}
        self.lanes: dict[Hashable, Lane] = {}  # the one served longest ago first
        self.round = 0
        self.quantum = 0.0
        self._mean = 0.0
        self._ticks = 0
        self._places = 0
        self._debtors: list[tuple[int, int, FlowState]] = []

    # ---- what the caller knows ----

    def add(self, item: Item) -> None:
        """Queue an item, last in its flow."""
        flow = self._flow(item.flow.vfm)
        self.sync(flow)
        flow.queue_for(item)[item.key] = item
        if flow.front is None:
            flow.place = self.tail()
        elif flow.first is flow.front:
            return
        self._quote(flow)
        self.enter(flow)

    def remove(self, item: Item) -> None:
        """Remove a waiting item."""
        flow = self.flows[item.flow.vfm]
        self.sync(flow)
        del flow.queue_for(item)[item.key]
        if flow.front is item:
            self._next(flow)
            self.enter(flow)

    def adjust(self, vfm: str, seconds: float) -> None:
        """Apply the true-up of a pass to a flow. One that emptied or was dropped meanwhile keeps debt only."""
        flow = self._flow(vfm)
        self.sync(flow)
        flow.deficit += seconds
        self.enter(flow)

    def reweigh(self, vfm: str) -> None:
        """Take up the new weight of a vFM; rounds that are over count at the old one."""
        if (flow := self.flows.get(vfm)) is not None:
            self.sync(flow)
            flow.weight = self._weights[vfm]
            self.enter(flow)

    def expect(self, vfm: str, more: bool) -> None:
        """Note whether the stream of a flow holds unclaimed jobs."""
        flow = self._flow(vfm)
        self.sync(flow)
        flow.more = more
        self.enter(flow)

    # ---- picking ----

    def tail(self) -> int:
        """Return a new place, at the tail of the ring."""
        self._places += 1
        return self._places

    def soonest(self) -> int | None:
        """Return the first round in which a backlogged flow can pay, not after the present one if it can already; None if there
        is no such flow."""
        return min((top[0] for lane in self.lanes.values() if (top := lane.peek())), default=None)

    def sync(self, flow: FlowState) -> None:
        """Credit the rounds since the last touch. An idle flow earns only until its debt is paid."""
        credit = (self.round - flow.round) * flow.weight * self.quantum
        flow.round = self.round
        if flow.front is not None:
            flow.deficit += credit
        elif flow.deficit < 0:
            flow.deficit = min(0.0, flow.deficit + credit)

    def take(self, flow: FlowState) -> tuple[Item, float]:
        """Dispatch the front at its price; the flow is out of its lane until it enters again."""
        item, price = flow.front, flow.price
        assert item is not None
        del flow.queue_for(item)[item.key]
        flow.deficit -= price
        self._mean += (price - self._mean) * _SMOOTH
        self._next(flow)
        return item, price

    def enter(self, flow: FlowState) -> None:
        """Put a flow where it now belongs: in its front's lane, for the round in which it can pay; or out."""
        self.leave(flow)
        front = flow.front
        if front is None:
            self._close(flow)
        else:
            lane = self._lane(front)
            short = flow.price - flow.deficit
            due = self.round + (ceil(short / (flow.weight * self.quantum)) if short > 0 else 0)
            self._ticks += 1
            flow.tick, flow.lane = self._ticks, lane
            lane.live += 1
            heappush(lane.heap, (due, flow.place, self._ticks, flow))
            if front.deadline is not None and flow.hurried is not front:
                flow.hurried = front
                heappush(lane.urgent, (front.deadline, self._ticks, flow, front))
            lane.compact()

    def leave(self, flow: FlowState) -> None:
        """Take a flow out of its lane; its entry there is void."""
        if flow.lane is not None:
            flow.lane.live -= 1
            flow.lane, flow.tick = None, 0

    # ---- housekeeping, off the picking path ----

    def forget(self, vfm: str) -> None:
        """Drop a flow and its deficit."""
        if (flow := self.flows.pop(vfm, None)) is not None:
            self.leave(flow)

    def tidy(self, limit: int) -> None:
        """Drop flows whose debt the passing rounds have paid, and let the quantum follow the prices."""
        while limit and self._debtors and self._debtors[0][0] <= self.round:
            flow = heappop(self._debtors)[2]
            flow.indebted = False
            if self.flows.get(flow.vfm) is flow:
                self.sync(flow)
                self._close(flow)
            limit -= 1
        if not self.quantum / _DRIFT <= self._mean <= self.quantum * _DRIFT:
            self._requantise()

    def _requantise(self) -> None:
        """Change what rounds are worth from here: all take what they have earned. O(flows), rare."""
        for flow in self.flows.values():
            self.sync(flow)
        self.quantum = self._mean
        for flow in list(self.flows.values()):
            if flow.front is not None:
                flow.price = self._cost.price(flow.front.units)
            self.enter(flow)

    def _flow(self, vfm: str) -> FlowState:
        flow = self.flows.get(vfm)
        if flow is None:
            flow = FlowState(vfm, self._weights.get(vfm, 1.0), self.round)
            self.flows[vfm] = flow
        return flow

    def _close(self, flow: FlowState) -> None:
        """Apply rule 5, and drop the flow's record with its last second of debt."""
        if flow.front is not None or flow.more:
            return
        flow.deficit = min(flow.deficit, 0.0)
        if flow.deficit == 0:
            del self.flows[flow.vfm]
        elif not flow.indebted:
            flow.indebted = True
            # Before anything was queued no round is worth anything; what it is worth then pays the debt.
            paid = self.round + (ceil(-flow.deficit / (flow.weight * self.quantum)) if self.quantum else 1)
            self._ticks += 1
            heappush(self._debtors, (paid, self._ticks, flow))

    def _next(self, flow: FlowState) -> None:
        flow.front = None
        if len(flow):
            self._quote(flow)

    def _quote(self, flow: FlowState) -> None:
        flow.front = flow.first
        assert flow.front is not None
        flow.price = self._cost.price(flow.front.units)
        if not self.quantum:
            self.quantum = self._mean = flow.price

    def _lane(self, front: Item) -> Lane:
        key = lane_of(front)
        lane = self.lanes.get(key)
        if lane is None:
            lane = self.lanes[key] = Lane(key)
        return lane
