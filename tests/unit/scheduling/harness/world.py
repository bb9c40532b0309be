"""Random surroundings for the promises: all that a scheduler can meet; and what can run is known without asking it."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from dataclasses import dataclass, replace

from fmplex_worker.scheduling import INTERACTIVE, OFFLINE, Flow, Item, Plan, Room

from .words import AMPLE, KnownCost, Make, flow_queue

_GUESTS = (*(Flow(f"guest{n}", INTERACTIVE) for n in range(3)), Flow("night", OFFLINE))
_WEIGHTS = (0.1, 1.0, 2.0, 7.0)


@dataclass(frozen=True)
class Case:
    """One trace. Steady flows, one for each weight, are always backlogged by more than a pass; guests come and go."""

    seed: int
    weights: tuple[float, ...] = ()
    sizes: tuple[int, ...] = (3, 20)
    apart: bool = False  # each steady flow sends items of one size only
    budget: int = 60
    rebudget: bool = False  # the size of a pass changes now and then
    buckets: int = 1
    in_flight: int = 1  # at most: passes are settled late
    noise: float = 0.0  # passes take what the true cost says, within this, not what was put down for them
    adapters: bool = False  # which cost: prices know nothing of them
    rooms: bool = False  # the engine has room for part of a pass only, in units or rows
    redelivered: bool = False  # some items come again when they have run, alone or not
    deadlines: bool = False
    passes: int = 60

    @property
    def debts(self) -> bool:
        """Tell whether there is a reason to go into debt: items that cannot share a pass, or are urgent."""
        return self.buckets > 1 or self.redelivered or self.deadlines


class World:
    """A check is a subclass that looks on: see the hooks. `make` may be a broken scheduler's."""

    def __init__(self, make: Make, case: Case) -> None:
        self.case = case
        self.rng = rng = random.Random(case.seed)
        self.alpha, self.beta = rng.uniform(0, 5), rng.uniform(0.001, 0.1)
        self.gamma = rng.uniform(0, 1) if case.adapters else 0.0
        bias = rng.choice((0.5, 1.0, 2.0)) if case.noise else 1.0
        self.cost = KnownCost(case.budget, self.alpha * bias, self.beta, self.gamma)
        self.scheduler = make(self.cost, case.budget)
        self.steady = [Flow(f"steady{n}", INTERACTIVE) for n in range(len(case.weights))]
        self.weights = {flow.vfm: w for flow, w in zip(self.steady, case.weights, strict=True)}
        self.weights |= {flow.vfm: rng.choice(_WEIGHTS) for flow in _GUESTS}
        self.queues: dict[Flow, dict[str, Item]] = {flow: {} for flow in (*self.steady, *_GUESTS)}
        self.expecting: set[Flow] = set()
        self.flying: deque[tuple[int, Plan]] = deque()
        self.number = self.keys = self.most_units = 0
        self.quantum = self.debt = self.unit_price = 0.0  # the largest so far
        for vfm, weight in self.weights.items():
            self.scheduler.set_weight(vfm, weight)
        self.top_up()

    # ---- hooks ----

    def arriving(self, new: Item) -> None:
        """The first item of a queue that is empty is about to be added."""

    def looking(self, room: Room) -> None:
        """A pass is asked for next."""

    def planned(self, plan: Plan | None, room: Room) -> None:
        """Its items still are in `queues`."""

    def charged(self, number: int, plan: Plan, seconds: float) -> None:
        """Pass `number` is about to be charged; calls `super().charged`, which does it."""
        self.scheduler.charge(plan, seconds)

    def removed(self, flow: Flow, key: str) -> None:
        """It is about to be cancelled; calls `super().removed`, which does it."""
        assert self.scheduler.remove(key) is self.queues[flow].pop(key)

    def reweighed(self, flow: Flow) -> None: ...

    # ---- what is known ----

    @property
    def largest(self) -> float:
        """C: the price of the largest item there was."""
        return self.most_units * self.unit_price

    @property
    def runnable(self) -> bool:
        return any(self.queues.values())

    def fronts(self) -> dict[Flow, Item]:
        """Of the interactive flows that may run."""
        return {
            flow: next(iter(queue.values())) for flow, queue in self.queues.items() if queue and flow.cls == INTERACTIVE
        }

    def deficits(self) -> defaultdict[str, float]:
        """A flow without a record has none. No vFM here has flows in both classes."""
        return defaultdict(float, {flow.vfm: share.deficit for flow, share in self.scheduler.shares().items()})

    # ---- what happens ----

    def run(self) -> None:
        for _ in range(self.case.passes):
            for _ in range(self.rng.randrange(3)):
                self.event()
            self.look()
            while self.flying and (len(self.flying) >= self.case.in_flight or self.rng.random() < 0.2):
                self.settle()
        while self.flying:
            self.settle()

    def top_up(self) -> None:
        for flow in self.steady:
            queued = sum(it.units for it in self.queues[flow].values())
            while queued <= self.scheduler.budget or len(self.queues[flow]) < 2:
                queued += self.add(flow).units

    def add(self, flow: Flow) -> Item:
        case, rng = self.case, self.rng
        apart = case.apart and flow in self.steady
        units = case.sizes[self.steady.index(flow) % len(case.sizes)] if apart else rng.choice(case.sizes)
        bucket = rng.randrange(case.buckets) if case.buckets > 1 else None
        deadline = self.number + rng.uniform(-5, 50) if case.deadlines and rng.random() < 0.2 else None
        segment = flow.vfm if case.adapters else None
        self.keys += 1
        new = Item(str(self.keys), flow, "encode", units, bucket, segment, deadline=deadline)
        self.put(new)
        return new

    def put(self, new: Item) -> None:
        queue = self.queues[new.flow]
        self.most_units = max(self.most_units, new.units)
        if not queue:
            self.arriving(new)
        self.scheduler.add(new)
        queue[new.key] = new

    def event(self) -> None:
        rng, scheduler = self.rng, self.scheduler
        flow = rng.choice(_GUESTS)
        match rng.randrange(7):
            case 0 | 1 | 2:
                for _ in range(rng.randint(1, 4)):
                    self.add(flow)
            case 3 | 4:
                self.cancel(rng.choice([*self.queues]))
            case 5:
                self.weights[flow.vfm] = rng.choice(_WEIGHTS)
                self.reweighed(flow)
                scheduler.set_weight(flow.vfm, self.weights[flow.vfm])
            case 6:
                more = flow not in self.expecting
                scheduler.expect(flow, more)
                (self.expecting.add if more else self.expecting.discard)(flow)

    def cancel(self, flow: Flow) -> None:
        """An item that waits; or one that is in a pass already, where it is too late."""
        if len(self.queues[flow]) > (flow in self.steady):
            self.removed(flow, self.rng.choice([*self.queues[flow]]))
        for _, plan in self.flying:
            assert self.scheduler.remove(self.rng.choice(plan.items).key) is None

    def look(self) -> None:
        case, rng, scheduler = self.case, self.rng, self.scheduler
        if case.rebudget and rng.random() < 0.1:
            scheduler.budget = rng.randint(case.budget // 2, 2 * case.budget)
        self.top_up()
        tight = case.rooms and rng.random() < 0.5
        room = Room(rng.randint(1, case.budget), rng.randint(1, 8)) if tight else AMPLE
        self.quantum = max(self.quantum, flow_queue(scheduler).quantum)
        self.unit_price = max(self.unit_price, self.cost.price(1))
        self.debt = max(self.debt, scheduler.max_debt if case.debts else 0.0)
        self.looking(room)
        plan = scheduler.plan(float(self.number), room)
        self.planned(plan, room)
        if plan is None:
            return
        for it in plan.items:
            assert self.queues[it.flow].pop(it.key) is it
        self.flying.append((self.number, plan))
        self.number += 1

    def settle(self) -> None:
        number, plan = self.flying.popleft()
        if self.case.redelivered and self.rng.random() < 0.2:
            for it in plan.items:
                if it.flow in self.steady or self.rng.random() < 0.7:
                    self.put(replace(it, alone=self.rng.random() < 0.3))
        self.charged(number, plan, self.measured(plan))

    def measured(self, plan: Plan) -> float:
        noise = self.case.noise
        if not noise:
            return sum(plan.prices)
        segments = len({it.segment for it in plan.items} - {None})
        true = self.alpha + self.beta * plan.units + self.gamma * segments
        return true * self.rng.uniform(1 - noise, 1 + noise)
