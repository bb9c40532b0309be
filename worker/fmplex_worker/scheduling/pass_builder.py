"""One pass in the making: rules 2 to 4 of batch-aware deficit round robin."""

from __future__ import annotations

from heapq import heappop, heappush

from .deadlines import Moment
from .flow_queue import FlowQueue
from .flows import FlowState, Lane, lane_of
from .items import Item, Room

_LOOKAHEAD = 32  # fronts passed over in search of one that fits: bounds the work when a pass is nearly full


class PassBuilder:
    """Fills one pass from a ring. `debt` is E_d: how far below zero a flow may go to fill or hurry it."""

    def __init__(self, ring: FlowQueue, units: int, room: Room, debt: float) -> None:
        self.items: list[Item] = []
        self.prices: list[float] = []
        self._ring = ring
        self._units = min(units, room.units)  # what is left of the pass
        self._rows = room.rows
        self._debt = debt
        self._full = self._units < 1 or self._rows < 1
        self._skipped: list[FlowState] = []  # out of their lane until the pass is made

    def fill(self, moment: Moment) -> None:
        """Pick the pass; afterwards `items` is empty only if nothing could run."""
        ring = self._ring
        lane = None if self._full else self._anchor()
        if lane is None:
            return
        if self._shorten(lane, moment):
            self._hurry(lane, moment)  # first, or the pass might be shorter for nobody
        if not self.items:
            self._turn(lane, self._pop(lane))
        self._hurry(lane, moment)
        self._pack(lane)
        for flow in self._skipped:
            ring.enter(flow)
        del ring.lanes[lane.key]  # and to the end: the next pass goes to the bucket that has waited longest
        ring.lanes[lane.key] = lane

    def _anchor(self) -> Lane | None:
        """The bucket of this pass: of those with an eligible front, the one served longest ago.

        A front that the last pass had to leave, for its bucket or for want of room, is eligible still: credit
        waits for it, and its bucket's turn comes within as many passes as there are buckets.
        """
        lanes = self._ring.lanes
        for key in [key for key, lane in lanes.items() if not lane.live]:
            del lanes[key]
        if not self._credit():
            return None
        return next(lane for lane in lanes.values() if self._eligible(lane))

    def _credit(self) -> bool:
        """Rule 1: when nobody is eligible, to all, just enough rounds. False if nobody is backlogged."""
        soonest = self._ring.soonest()
        if soonest is None:
            return False
        self._ring.round = max(self._ring.round, soonest)
        return True

    def _eligible(self, lane: Lane) -> bool:
        top = lane.peek()
        return top is not None and top[0] <= self._ring.round

    def _pop(self, lane: Lane) -> FlowState:
        flow = heappop(lane.heap)[3]
        self._ring.leave(flow)
        self._ring.sync(flow)
        return flow

    def _take(self, flow: FlowState) -> None:
        item, price = self._ring.take(flow)
        self.items.append(item)
        self.prices.append(price)
        # Nothing joins an item that must run alone or exceeds a pass; only the first of a pass can be that.
        self._units = 0 if item.alone else self._units - item.units
        self._rows -= 1
        self._full = self._units <= 0 or self._rows <= 0

    def _fits(self, flow: FlowState) -> bool:
        front = flow.front
        return front is not None and front.units <= self._units

    def _may_borrow(self, flow: FlowState) -> bool:
        return flow.deficit - flow.price >= -self._debt

    def _rejoin(self, flow: FlowState) -> None:
        if flow.deficit < flow.price:
            flow.place = self._ring.tail()
        self._ring.enter(flow)

    def _turn(self, lane: Lane, flow: FlowState) -> None:
        """Rule 2 for one flow: serve fronts while it can pay. Interrupted, it keeps its place (rule 4)."""
        while not self.items or self._fits(flow):
            self._take(flow)
            front = flow.front
            if self._full or front is None or flow.deficit < flow.price or lane_of(front) != lane.key:
                self._rejoin(flow)
                return
        self._skipped.append(flow)

    def _pack(self, lane: Lane) -> None:
        """Rules 2 and 3: eligible fronts in ring order, credit while there are none.

        An eligible front that has to wait ends that, and what is left is filled on debt if there are several
        buckets. With one bucket nobody borrows, whence the promise without E_d.
        """
        ring = self._ring
        while not self._full:
            while not self._full and len(self._skipped) < _LOOKAHEAD and self._eligible(lane):
                self._turn(lane, self._pop(lane))
            soonest = ring.soonest()
            if self._full or (soonest is None and not self._skipped):
                return
            if self._skipped or (soonest is not None and soonest <= ring.round):
                if any(other.live for other in ring.lanes.values() if other is not lane):
                    self._borrow(lane)
                return
            self._credit()

    def _borrow(self, lane: Lane) -> None:
        """Fill what is left on debt, those first that would be eligible next."""
        passed_over = 0
        while not self._full and passed_over < _LOOKAHEAD and lane.peek():
            flow = self._pop(lane)
            if self._fits(flow) and self._may_borrow(flow):
                self._take(flow)
                self._rejoin(flow)
            else:
                self._skipped.append(flow)
                passed_over += 1

    def _shorten(self, lane: Lane, moment: Moment) -> bool:
        """For the front with the earliest deadline that a shorter pass can keep; True if there is one."""
        later: list[tuple[float, int, FlowState, Item]] = []
        shortened = False
        while lane.urgent and not shortened and len(later) < _LOOKAHEAD:
            entry = heappop(lane.urgent)
            deadline, _, flow, item = entry
            if self._is_past(flow, item, deadline, moment):
                continue
            later.append(entry)
            if deadline > moment.horizon:
                break
            self._ring.sync(flow)
            units = moment.shortened(self._units, deadline)
            if item.units <= units < self._units and self._may_borrow(flow):
                self._units, shortened = units, True
        for entry in later:
            heappush(lane.urgent, entry)
        return shortened

    def _is_past(self, flow: FlowState, item: Item, deadline: float, moment: Moment) -> bool:
        """It is no front any more, may not run now, or is late already, which nothing mends."""
        return deadline < moment.begin or flow.front is not item or flow.throttled

    def _hurry(self, lane: Lane, moment: Moment) -> None:
        """Urgency is one's turn taken early, on debt: fronts too late for the next pass, by deadline.

        Up to half of what is left, so that the ring keeps moving; a front already late gains nothing by it.
        """
        keep = self._units // 2
        later: list[tuple[float, int, FlowState, Item]] = []
        while not self._full and self._units > keep and len(later) < _LOOKAHEAD and lane.urgent:
            if lane.urgent[0][0] > moment.horizon:
                break
            entry = heappop(lane.urgent)
            deadline, _, flow, item = entry
            if self._is_past(flow, item, deadline, moment):
                continue
            self._ring.sync(flow)
            if flow.lane is lane and self._fits(flow) and self._may_borrow(flow):
                self._ring.leave(flow)
                self._take(flow)
                self._rejoin(flow)
            else:
                later.append(entry)
        for entry in later:
            heappush(lane.urgent, entry)
