"""What is in a pass: never nothing, full when it can be, each bucket in its turn, each flow in its order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from random import Random

from fmplex_worker.scheduling import INTERACTIVE, Item, Plan, Room

from .words import AMPLE, ROUNDING, KnownCost, Make, item, must, own
from .world import Case, World


class _NeverIdle(World):
    def planned(self, plan: Plan | None, room: Room) -> None:
        assert (plan is not None) == self.runnable
        if plan is None:
            return
        assert 0 < len(plan.items) <= room.items
        assert len(plan.items) == 1 or plan.units <= min(room.units, self.scheduler.budget)


def check_never_idle(make: Make, case: Case) -> None:
    """A pass exactly when something can run, within the room, and never an empty one; and in the end everything has run."""
    world = _NeverIdle(make, case)
    world.run()
    world.steady = []
    while world.runnable:
        world.look()
    assert len(world.scheduler) == 0


class _Order(World):
    def planned(self, plan: Plan | None, room: Room) -> None:
        for flow, queue in self.queues.items():
            picked = [it.key for it in plan.items if it.flow == flow] if plan else []
            assert picked == [*queue][: len(picked)]


def check_order(make: Make, case: Case) -> None:
    """Within a flow items run in the order they came, whatever their buckets and sizes."""
    _Order(make, case).run()


class _Full(World):
    def planned(self, plan: Plan | None, room: Room) -> None:
        scheduler = self.scheduler
        if plan is None or plan.cls != INTERACTIVE or plan.items[0].alone:
            return
        mine = own(plan)
        left = min(scheduler.budget, room.units) - sum(it.units for it in mine)
        if left <= 0 or len(mine) == room.items:
            return
        for it in mine:  # what waits now
            del self.queues[it.flow][it.key]
        self.missed(plan.bucket, left)
        for it in reversed(mine):
            self.queues[it.flow] = {it.key: it, **self.queues[it.flow]}

    def missed(self, bucket: Hashable, left: int) -> None:
        """With one bucket credit goes on until a front that can pay is too large; with several there are debts."""
        fronts, deficits = self.fronts(), self.deficits()
        compatible = {flow: it for flow, it in fronts.items() if it.bucket == bucket and not it.alone}
        after = {flow: deficits[flow.vfm] - self.cost.price(it.units) for flow, it in compatible.items()}
        tiny = ROUNDING * self.largest
        if len(compatible) < len(fronts):
            limit = -self.scheduler.max_debt + tiny
            assert all(it.units > left or after[flow] < limit for flow, it in compatible.items())
        else:
            cut_short = any(it.units > left and after[flow] >= -tiny for flow, it in compatible.items())
            assert cut_short or not compatible


def check_nothing_more_would_fit(make: Make, case: Case) -> None:
    """A pass has room left only if what is compatible and waits is too large for it, or too deep in debt."""
    _Full(make, case).run()


def check_full_passes(make: Make, seed: int, sizes: Sequence[int], buckets: int) -> None:
    """With enough of everything: full but for less than its largest item; with several buckets half full, by debt."""
    budget = 64
    scheduler = make(KnownCost(budget), budget)
    rng, keys = Random(seed), iter(range(10**9))
    queued = dict.fromkeys("abcd", 0)
    for number in range(20):
        for vfm in queued:
            bucket = ord(vfm) % buckets if buckets > 1 else None
            while queued[vfm] < budget:
                queued[vfm] += (units := rng.choice(sizes))
                scheduler.add(item(next(keys), vfm, units, bucket=bucket))
        plan = must(scheduler.plan(number, AMPLE))
        least = budget if buckets == 1 else budget / 2
        assert plan.units > least - max(sizes)
        if len(set(sizes)) == 1 and buckets == 1:
            assert plan.units == budget - budget % sizes[0]
        for it in plan.items:
            queued[it.flow.vfm] -= it.units
        scheduler.charge(plan, sum(plan.prices))


class _Turns(World):
    """How many passes in a row went elsewhere while a bucket had a front that could pay."""

    def __init__(self, make: Make, case: Case) -> None:
        super().__init__(make, case)
        self.waited: dict[Hashable, int] = {}
        self.buckets = case.buckets + case.redelivered  # what runs alone is a bucket of its own
        self.longest = 0

    @staticmethod
    def lane(it: Item) -> Hashable:
        return "alone" if it.alone else it.bucket

    def looking(self, room: Room) -> None:
        deficits = self.deficits()
        able = {
            self.lane(it)
            for flow, it in self.fronts().items()
            if deficits[flow.vfm] >= self.cost.price(it.units) * (1 + ROUNDING)
        }
        self.waited = {lane: self.waited.get(lane, 0) for lane in able}

    def planned(self, plan: Plan | None, room: Room) -> None:
        if plan is None or plan.cls != INTERACTIVE:
            return
        self.waited.pop(self.lane(plan.items[0]), None)
        self.waited = {lane: passes + 1 for lane, passes in self.waited.items()}
        self.longest = max(self.longest, *self.waited.values(), 0)
        assert self.longest < self.buckets


def check_rare_bucket(make: Make, case: Case) -> int:
    """A bucket in which a front can pay is served within as many passes as there are buckets. The longest wait."""
    world = _Turns(make, case)
    world.run()
    return world.longest
