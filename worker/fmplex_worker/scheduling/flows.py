"""The state of a flow, and the lanes in which flows wait for their turn."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop

from .items import Item

_SLACK = 64  # replaced entries a lane may hold beyond the number of valid ones
_SOLO = object()  # the lane of items that must run alone

Entry = tuple[int, int, int, "FlowState"]  # round in which the flow can pay, place in the ring, tick, flow


@dataclass(slots=True, eq=False)
class FlowState:
    """The state of one flow. `deficit` holds as of `round`; `price` is that of the front, quoted when it became the front.
    `rest` is what `follows`, behind all of `queue`."""

    vfm: str
    weight: float
    round: int
    place: int = 0
    deficit: float = 0.0
    price: float = 0.0
    front: Item | None = None
    queue: OrderedDict[str, Item] = field(default_factory=OrderedDict)
    rest: OrderedDict[str, Item] = field(default_factory=OrderedDict)
    lane: Lane | None = None
    tick: int = 0  # of its one valid entry
    hurried: Item | None = None  # the front that its lane's urgency heap knows
    more: bool = False  # its stream holds jobs that nobody has claimed
    indebted: bool = False  # listed among the debtors

    def queue_for(self, item: Item) -> OrderedDict[str, Item]:
        """Return the queue in which an item of this flow waits."""
        return self.rest if item.follows else self.queue

    @property
    def first(self) -> Item | None:
        """The item that waits first; it becomes the front when that is quoted."""
        return next(iter((self.queue or self.rest).values()), None)

    def __len__(self) -> int:
        return len(self.queue) + len(self.rest)


@dataclass(slots=True, eq=False)
class Lane:
    """The flows whose fronts can share a pass. Replaced entries stay in the heaps until they surface."""

    key: Hashable
    live: int = 0
    heap: list[Entry] = field(default_factory=list)
    urgent: list[tuple[float, int, FlowState, Item]] = field(default_factory=list)

    def peek(self) -> Entry | None:
        """Return the entry of the flow that can pay first, dropping replaced ones; None if no flow is in the lane."""
        heap = self.heap
        while heap and heap[0][2] != heap[0][3].tick:
            heappop(heap)
        return heap[0] if heap else None

    def compact(self) -> None:
        """Drop entries that cancelled or recharged flows left behind, once they are many: they may lie too deep to surface."""
        if len(self.heap) > 2 * self.live + _SLACK:
            self.heap = [entry for entry in self.heap if entry[2] == entry[3].tick]
            heapify(self.heap)
        if len(self.urgent) > 2 * self.live + _SLACK:
            self.urgent = [entry for entry in self.urgent if entry[2].front is entry[3]]
            heapify(self.urgent)


def lane_of(item: Item) -> Hashable:
    """Return the key of the lane in which a flow waits whose front is `item`."""
    return _SOLO if item.alone else item.bucket
