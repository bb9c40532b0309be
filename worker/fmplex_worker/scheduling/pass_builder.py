"""One pass in the making: rules 1 to 3 of batch-aware deficit round robin (docs/scheduling.md)."""

from __future__ import annotations

from collections.abc import Hashable
from heapq import heappop, heappush

from .deadlines import Moment
from .flow_queue import FlowQueue
from .flows import FlowState, Lane, lane_of
from .items import Item, Room

_LOOKAHEAD = 32  # fronts passed over in search of one that fits: bounds the work when a pass is nearly full


class PassBuilder:
    """Builder of one pass of up to `units` from the flows of a queue. `debt` is E_d: how far below zero a flow may go to fill or
    hurry it."""

    def __init__(self, queue: FlowQueue, units: int, room: Room, debt: float) -> None:
        self.items: list[Item] = []
        self.prices: list[float] = []
        self._queue = queue
        self._units_left = min(units, room.units)
        self._items_left = room.items
        self._debt = debt
        self._full = self._units_left < 1 or self._items_left < 1
        self._skipped: list[FlowState] = []  # out of their lane until the pass is made
        self._rides = False

    @property
    def left(self) -> Room:
        """What is left of the pass."""
        return Room(self._units_left, self._items_left)

    def fill(self, moment: Moment) -> None:
        """Pick the pass; afterwards `items` is empty only if nothing could run."""
        lane = None if self._full else self._anchor()
        if lane is None:
            return
        if self._shorten(lane, moment):
            self._hurry(lane, moment)  # first, or the pass might be shorter for nobody
        if not self.items:
            self._serve(lane, self._pop(lane))
        self._hurry(lane, moment)
        self._pack(lane)
        self._end(lane)

    def ride(self, bucket: Hashable) -> None:
        """Pick what may go with a pass of another class, of its bucket: only what fits, and maybe nothing."""
        lane = self._queue.lanes.get(bucket)
        if lane is not None:
            self._rides = True
            self._pack(lane)
            self._end(lane)

    def _end(self, lane: Lane) -> None:
        for flow in self._skipped:
            self._queue.enter(flow)
        if self.items:  # to the end: the next pass goes to the bucket that has waited longest
            del self._queue.lanes[lane.key]
            self._queue.lanes[lane.key] = lane

    def _anchor(self) -> Lane | None:
        """Choose the bucket of this pass: of those with an eligible front, the one served longest ago.

        A front that the last pass had to leave, for its bucket or for want of room, is eligible still: credit
        waits for it, and its bucket's turn comes within as many passes as there are buckets.
        """
        lanes = self._queue.lanes
        for key in [key for key, lane in lanes.items() if not lane.live]:
            del lanes[key]
        if not self._credit():
            return None
        return next(lane for lane in lanes.values() if self._eligible(lane))

    def _credit(self) -> bool:
        """Give credit (rule 1) when nobody is eligible: to all, just enough rounds. False if nobody is backlogged."""
        soonest = self._queue.soonest()
        if soonest is None:
            return False
        self._queue.round = max(self._queue.round, soonest)
        return True

    def _eligible(self, lane: Lane) -> bool:
        top = lane.peek()
        return top is not None and top[0] <= self._queue.round

    def _pop(self, lane: Lane) -> FlowState:
        flow = heappop(lane.heap)[3]
        self._queue.leave(flow)
        self._queue.sync(flow)
        return flow

    def _take(self, flow: FlowState) -> None:
        item, price = self._queue.take(flow)
        self.items.append(item)
        self.prices.append(price)
        # Nothing joins an item that must run alone or exceeds a pass; only the first of a pass can be that.
        self._units_left = 0 if item.alone else self._units_left - item.units
        self._items_left -= 1
        self._full = self._units_left <= 0 or self._items_left <= 0

    def _fits(self, flow: FlowState) -> bool:
        front = flow.front
        return front is not None and front.units <= self._units_left

    def _may_borrow(self, flow: FlowState) -> bool:
        return flow.deficit - flow.price >= -self._debt

    def _rejoin(self, flow: FlowState) -> None:
        if flow.deficit < flow.price:
            flow.place = self._queue.tail()
        self._queue.enter(flow)

    def _serve(self, lane: Lane, flow: FlowState) -> None:
        """Serve the fronts of one flow while it can pay (rule 2). Interrupted by a full pass, it keeps its place."""
        while self._fits(flow) or not (self.items or self._rides):
            self._take(flow)
            front = flow.front
            if self._full or front is None or flow.deficit < flow.price or lane_of(front) != lane.key:
                self._rejoin(flow)
                return
        self._skipped.append(flow)

    def _pack(self, lane: Lane) -> None:
        """Fill the pass (rules 2 and 3): eligible fronts in ring order, credit while there are none.

        An eligible front that has to wait ends that, and what is left is filled on debt if there are several
        buckets. With one bucket nobody borrows, whence the promise without E_d.
        """
        queue = self._queue
        while not self._full:
            while not self._full and len(self._skipped) < _LOOKAHEAD and self._eligible(lane):
                self._serve(lane, self._pop(lane))
            soonest = queue.soonest()
            if self._full or (soonest is None and not self._skipped):
                return
            if self._skipped or (soonest is not None and soonest <= queue.round):
                if any(other.live for other in queue.lanes.values() if other is not lane):
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
        """Shorten the pass for the front with the earliest deadline that a shorter one can keep; True if there is one."""
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
            self._queue.sync(flow)
            units = moment.shortened(self._units_left, deadline)
            if item.units <= units < self._units_left and self._may_borrow(flow):
                self._units_left, shortened = units, True
        for entry in later:
            heappush(lane.urgent, entry)
        return shortened

    def _is_past(self, flow: FlowState, item: Item, deadline: float, moment: Moment) -> bool:
        """Tell whether an urgent entry is void: its item is no front any more, or is late already, which nothing mends."""
        return deadline < moment.begin or flow.front is not item

    def _hurry(self, lane: Lane, moment: Moment) -> None:
        """Serve urgent fronts early, on debt: those that would be late in the next pass, by deadline.

        Up to half of what is left, so that the ring keeps moving; a front already late gains nothing by it.
        """
        keep = self._units_left // 2
        later: list[tuple[float, int, FlowState, Item]] = []
        while not self._full and self._units_left > keep and len(later) < _LOOKAHEAD and lane.urgent:
            if lane.urgent[0][0] > moment.horizon:
                break
            entry = heappop(lane.urgent)
            deadline, _, flow, item = entry
            if self._is_past(flow, item, deadline, moment):
                continue
            self._queue.sync(flow)
            if flow.lane is lane and self._fits(flow) and self._may_borrow(flow):
                self._queue.leave(flow)
                self._take(flow)
                self._rejoin(flow)
            else:
                later.append(entry)
        for entry in later:
            heappush(lane.urgent, entry)
