"""What the scheduler tests share: a cost model that does not learn, saturating load, and the checks.

The checks are functions of how a scheduler is made, so that `test_mutants.py` can hand them broken ones.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, count
from math import ceil

from fmplex_worker.scheduling import INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, Plan, Room
from fmplex_worker.scheduling.ring import Ring

AMPLE = Room(units=10**9, rows=10**9)
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


def ring(scheduler: DeficitRoundRobin, cls: str = INTERACTIVE) -> Ring:
    return scheduler._rings[cls]


def deficit(scheduler: DeficitRoundRobin, vfm: str) -> float:
    share = scheduler.shares().get(vfm)
    return share.deficit if share else 0.0


def must(plan: Plan | None) -> Plan:
    assert plan is not None
    return plan


@dataclass
class Load:
    """Keeps some flows backlogged by more than a pass, and lets others come and go."""

    scheduler: DeficitRoundRobin
    rng: random.Random
    sizes: Sequence[int]
    buckets: int = 1
    keys: Iterator[int] = field(default_factory=count)

    def add(self, vfm: str) -> Item:
        bucket = self.rng.randrange(self.buckets) if self.buckets > 1 else None
        new = item(next(self.keys), vfm, self.rng.choice(self.sizes), bucket=bucket)
        self.scheduler.add(new)
        return new

    def top_up(self, vfm: str) -> None:
        enough = self.scheduler.budget // min(self.sizes) + 2
        for _ in range(enough - self.scheduler.pending(Flow(vfm, INTERACTIVE))):
            self.add(vfm)


@dataclass(frozen=True)
class Case:
    """One trace for the promise. `noise` is how far measured time strays from the price, both ways."""

    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    budget: int
    buckets: int
    in_flight: int
    noise: float
    seed: int


def check_service_bound(make: Make, case: Case, passes: int = 80) -> None:
    """§5: two flows backlogged throughout get service in proportion to weight over every interval."""
    rng = random.Random(case.seed)
    cost = KnownCost(case.budget, alpha=rng.uniform(0, 5), beta=rng.uniform(0.001, 0.1))
    scheduler = make(cost, case.budget)
    load = Load(scheduler, rng, case.sizes, case.buckets)
    weights = {f"flow{i}": weight for i, weight in enumerate(case.weights)}
    for vfm, weight in weights.items():
        scheduler.set_weight(vfm, weight)
    visitors = [f"visitor{i}" for i in range(3)]
    served: list[dict[str, float]] = []  # per pass: what each flow got, by measured cost
    flying: list[tuple[int, Plan]] = []
    error = quantum = largest = 0.0

    def settle() -> None:
        nonlocal error
        number, plan = flying.pop(0)
        seconds = sum(plan.prices) * (1 + rng.uniform(-case.noise, case.noise))
        charges = cost.apportion(plan.items, seconds)
        scheduler.charge(plan, seconds)
        paid: dict[str, float] = defaultdict(float)
        priced: dict[str, float] = defaultdict(float)
        for it, price, charge in zip(plan.items, plan.prices, charges, strict=True):
            paid[it.flow.vfm] += charge
            priced[it.flow.vfm] += price
        error = max(error, *(abs(paid[vfm] - priced[vfm]) for vfm in paid))
        served[number] = paid

    for number in range(passes):
        for vfm in weights:
            load.top_up(vfm)
        if rng.random() < 0.3:
            load.add(rng.choice(visitors))
        plan = must(scheduler.plan(0.0, AMPLE))
        served.append({})
        flying.append((number, plan))
        largest = max(largest, *plan.prices)
        quantum = max(quantum, ring(scheduler).quantum)
        if len(flying) >= case.in_flight:
            settle()
    while flying:
        settle()

    debt = scheduler.max_debt if case.buckets > 1 else 0.0
    slack = debt + 2 * case.in_flight * error
    for i, j in combinations(weights, 2):
        bound = 2 * quantum + (largest + slack) * (1 / weights[i] + 1 / weights[j])
        ahead, low, high = 0.0, 0.0, 0.0  # the worst interval lies between two extremes of the running lead
        for paid in served:
            ahead += paid.get(i, 0.0) / weights[i] - paid.get(j, 0.0) / weights[j]
            low, high = min(low, ahead), max(high, ahead)
        assert high - low <= bound * (1 + 1e-9), (i, j, high - low, bound)


def check_full_passes(make: Make, seed: int, sizes: Sequence[int], buckets: int) -> None:
    """Full but for less than its largest item; with several buckets half full at least, thanks to debt."""
    budget = 64
    scheduler = make(KnownCost(budget), budget)
    load = Load(scheduler, random.Random(seed), sizes)
    for number in range(40):
        for vfm in "abcd":
            bucket = ord(vfm) % buckets if buckets > 1 else None
            while scheduler.pending(Flow(vfm, INTERACTIVE)) < budget:
                scheduler.add(item(next(load.keys), vfm, load.rng.choice(sizes), bucket=bucket))
        plan = must(scheduler.plan(number, AMPLE))
        least = budget if buckets == 1 else budget / 2
        assert plan.units > least - max(sizes)
        if len(set(sizes)) == 1 and buckets == 1:
            assert plan.units == budget - budget % sizes[0]
        scheduler.charge(plan, sum(plan.prices))


def check_charges(cost: CostModel, items: Sequence[Item]) -> None:
    """Charges sum to the measured time, and nobody is charged more than running alone would cost."""
    segments, heads = {i.segment for i in items} - {None}, {i.head for i in items} - {None}
    measured = cost.predict(sum(i.units for i in items), len(segments), len(heads))
    charges = cost.apportion(items, measured)
    assert abs(sum(charges) - measured) <= 1e-9 * measured
    for it, charge in zip(items, charges, strict=True):
        alone = cost.predict(it.units, it.segment is not None, it.head is not None)
        assert 0 <= charge <= alone * (1 + 1e-9)


def check_emptied_flow_keeps_only_debt(make: Make) -> None:
    """Rule 5: D ≤ 0 once empty, also after a late true-up; and the debt outlasts the emptiness."""
    for measured in (0.5, 2.0):
        scheduler = make(KnownCost(100), 100)
        scheduler.set_weight("a", 7.0)  # a round is worth several fronts, so there is credit to forfeit
        scheduler.add(item(1))
        plan = must(scheduler.plan(0.0, AMPLE))
        assert deficit(scheduler, "a") <= 0
        scheduler.charge(plan, sum(plan.prices) * measured)
        owed = sum(plan.prices) * (measured - 1)
        assert deficit(scheduler, "a") == -max(0.0, owed)


def check_debt_survives_idleness(make: Make) -> None:
    """A flow that comes back at once finds its debt; its record goes once passing rounds have paid it."""
    scheduler = make(KnownCost(100), 100)
    scheduler.add(item("heavy", "a", 50))
    plan = must(scheduler.plan(0.0, AMPLE))
    price = sum(plan.prices)
    scheduler.charge(plan, 3 * price)
    scheduler.add(item("again", "a", 50))
    assert deficit(scheduler, "a") == -2 * price
    scheduler.remove("again")
    assert deficit(scheduler, "a") == -2 * price
    for n in range(12):
        scheduler.add(item(n, "b", 50))
        plan = must(scheduler.plan(0.0, AMPLE))
        scheduler.charge(plan, sum(plan.prices))
    assert deficit(scheduler, "a") == 0
    assert not ring(scheduler).flows


def check_throttled_earns_nothing(make: Make) -> None:
    """A throttled flow is skipped, keeps its deficit whatever the rounds, and then takes part again."""
    scheduler = make(KnownCost(20), 20)
    flow = Flow("a", INTERACTIVE)
    for n in range(30):
        scheduler.add(item(f"a{n}", "a"))
    for n in range(60):
        scheduler.add(item(f"b{n}", "b"))
    scheduler.charge(first := must(scheduler.plan(0.0, AMPLE)), sum(first.prices) * 1.3)
    scheduler.throttle(flow)
    kept = deficit(scheduler, "a")
    for _ in range(20):
        plan = must(scheduler.plan(0.0, AMPLE))
        assert {it.flow.vfm for it in plan.items} == {"b"}
        scheduler.charge(plan, sum(plan.prices))
    assert deficit(scheduler, "a") == kept
    scheduler.resume(flow)
    assert deficit(scheduler, "a") == kept
    picked = [it.flow.vfm for _ in range(4) for it in must(scheduler.plan(0.0, AMPLE)).items]
    assert 3 <= picked.count("a") <= 5


def check_rare_bucket(make: Make, seed: int, buckets: int) -> None:
    """A bucket in which a front can pay is served within as many passes as there are buckets."""
    rng = random.Random(seed)
    scheduler = make(KnownCost(40), 40)
    load = Load(scheduler, rng, (5, 10))
    waited: dict[object, int] = {}
    for number in range(60):
        for i in range(30):
            while scheduler.pending(Flow(f"common{i}", INTERACTIVE)) < 4:
                scheduler.add(item(next(load.keys), f"common{i}", rng.choice((5, 10)), bucket=0))
        for bucket in range(1, buckets):
            if not scheduler.pending(Flow(f"rare{bucket}", INTERACTIVE)):
                scheduler.add(item(next(load.keys), f"rare{bucket}", 10, bucket=bucket))
        lanes = ring(scheduler).lanes.values()
        eligible = {lane.key for lane in lanes if (top := lane.peek()) and top[0] <= ring(scheduler).round}
        plan = must(scheduler.plan(number, AMPLE))
        waited = {bucket: waited.get(bucket, 0) + 1 for bucket in eligible if bucket != plan.bucket}
        assert max(waited.values(), default=0) < buckets
        scheduler.charge(plan, sum(plan.prices))


def check_long_run_shares(make: Make, bias: float) -> None:
    """1 : 2 : 4 by measured time within 2 %, although prices are off and sizes differ between the vFMs."""
    cost = KnownCost(256, alpha=1.0, beta=0.01 * bias, gamma=0.5)
    scheduler = make(cost, 256)
    rng = random.Random(7)
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    sizes = {"a": (5, 90), "b": (20, 40), "c": (3, 200)}
    keys = count()
    for vfm, weight in weights.items():
        scheduler.set_weight(vfm, weight)
    for _ in range(800):
        for vfm in weights:
            while scheduler.pending(Flow(vfm, INTERACTIVE)) < 90:
                units = rng.choice(sizes[vfm])
                scheduler.add(Item(str(next(keys)), Flow(vfm, INTERACTIVE), "encode", units, segment=vfm))
        plan = must(scheduler.plan(0.0, AMPLE))
        scheduler.charge(plan, (1.0 + 0.01 * plan.units) * rng.uniform(0.7, 1.3))
    shares = scheduler.shares()
    total = sum(share.charged for share in shares.values())
    for vfm, weight in weights.items():
        assert abs(shares[vfm].charged / total / (weight / 7) - 1) < 0.02


def check_settled_once(make: Make) -> None:
    scheduler = make(KnownCost(100), 100)
    scheduler.add(item(1))
    plan = must(scheduler.plan(0.0, AMPLE))
    scheduler.charge(plan, 1.0)
    for settle in (partial(scheduler.charge, plan, 1.0), partial(scheduler.refund, plan)):
        try:
            settle()
        except ValueError:
            continue
        raise AssertionError("settled twice")


@dataclass
class Trace:
    """Random work that comes, goes, is throttled and cancelled, and passes in flight; what can run is known without asking."""

    make: Make
    seed: int
    buckets: int
    waiting: dict[str, Item] = field(default_factory=dict)
    throttled: set[Flow] = field(default_factory=set)
    flying: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.scheduler = self.make(KnownCost(40, alpha=self.rng.uniform(0, 5)), 40)
        for n in range(5):
            self.scheduler.set_weight(f"v{n}", self.rng.choice([0.1, 1.0, 7.0]))

    def runnable(self) -> bool:
        return any(it.flow not in self.throttled for it in self.waiting.values())

    def step(self, number: int) -> None:
        rng, scheduler = self.rng, self.scheduler
        flow = Flow(f"v{rng.randrange(5)}", rng.choice([INTERACTIVE, INTERACTIVE, "offline"]))
        match rng.randrange(8):
            case 0 | 1 | 2:
                bucket = rng.randrange(self.buckets)
                alone, deadline = rng.random() < 0.1, rng.choice([None, number + rng.uniform(-5, 50)])
                new = item(number, flow.vfm, rng.choice([1, 9, 30, 90]), flow.cls, bucket, alone, deadline)
                self.waiting[new.key] = new
                scheduler.add(new)
            case 3 if self.waiting:
                assert scheduler.remove(gone := rng.choice([*self.waiting])) == self.waiting.pop(gone)
            case 4:
                scheduler.throttle(flow)
                self.throttled.add(flow)
            case 5:
                scheduler.resume(flow)
                self.throttled.discard(flow)
            case 6 if self.flying:
                scheduler.charge(plan := self.flying.pop(0), sum(plan.prices) * rng.uniform(0.2, 4))
            case 7:
                self.look(number)

    def look(self, number: int) -> None:
        """A pass exactly when something can run, of what can run, and never an empty one."""
        plan = self.scheduler.plan(number, AMPLE)
        assert (plan is not None) == self.runnable()
        if plan is not None:
            assert plan.items
            for it in plan.items:
                assert it.flow not in self.throttled
                assert self.waiting.pop(it.key) == it
            self.flying.append(plan)


def check_never_idle(make: Make, seed: int, buckets: int) -> None:
    """Work conserving, whatever comes and goes; and in the end everything has run once."""
    trace = Trace(make, seed, buckets)
    for number in range(200):
        trace.step(number)
    for flow in list(trace.throttled):
        trace.scheduler.resume(flow)
    trace.throttled.clear()
    for number in range(200, 400):
        trace.look(number)
    assert not trace.waiting
    assert len(trace.scheduler) == 0


def check_no_gain(make: Make, seed: int, units: Sequence[int], visits: int = 0) -> None:
    """Neither splitting work, nor large items, nor going idle (every so many passes: `visits`) and coming back gets more than
    a flow of equal weight gets that sends 16 units at a time, while both are there; each coming is worth one bound at most."""
    alpha, beta = 1.0, 0.05
    scheduler = make(KnownCost(64, alpha, beta), 64)
    rng, keys, turns = random.Random(seed), count(), count()
    ahead = plain = quantum = 0.0
    comings = 1
    for number in range(400):
        away = bool(visits) and number % visits == visits - 1
        comings += away
        while not away and scheduler.pending(Flow("odd", INTERACTIVE)) < 70:
            scheduler.add(item(next(keys), "odd", units[next(turns) % len(units)]))
        if away:
            for it in [it for it in scheduler._ledger.waiting.values() if it.flow.vfm == "odd"]:
                scheduler.remove(it.key)
        while scheduler.pending(Flow("plain", INTERACTIVE)) < 8:
            scheduler.add(item(next(keys), "plain", 16))
        before = scheduler.shares()
        plan = must(scheduler.plan(0.0, AMPLE))
        quantum = max(quantum, ring(scheduler).quantum)
        scheduler.charge(plan, (alpha + beta * plan.units) * rng.uniform(0.8, 1.2))
        if not away:
            got = {vfm: share.charged - before[vfm].charged for vfm, share in scheduler.shares().items()}
            ahead += got["odd"] - got["plain"]
            plain += got["plain"]
    largest = scheduler._ledger.cost.price(max(*units, 16))
    assert ahead <= 0.02 * plain + comings * 2 * (quantum + largest)


def check_refunds(make: Make, seed: int) -> None:
    """A pass that failed, and runs again, is charged once: its items were refunded."""
    rng = random.Random(seed)
    scheduler = make(KnownCost(40), 40)
    load = Load(scheduler, rng, (4, 10))
    seconds = 0.0
    for _ in range(60):
        for vfm in ("a", "b"):
            load.top_up(vfm)
        plan = must(scheduler.plan(0.0, AMPLE))
        if rng.random() < 0.3:
            for it in reversed(plan.items):
                scheduler.add(it, front=True)
            scheduler.refund(plan)
            continue
        took = sum(plan.prices)
        seconds += took
        scheduler.charge(plan, took)
    shares = scheduler.shares()
    assert abs(sum(share.charged for share in shares.values()) - seconds) <= 1e-9 * seconds
    # What was given and not used is what the deficits hold: both flows got the same credit.
    ahead = [share.charged + share.deficit for share in shares.values()]
    assert abs(ahead[0] - ahead[1]) <= 2 * ring(scheduler).quantum + 1e-9


def check_newcomer(
    make: Make, flows: int, budget: int, warm: int, in_flight: int, weight: float = 1.0, units: int = 10
) -> None:
    """It is served after the passes in flight and as many rounds as it takes to pay for its first item. A round is worth one
    item of 10 units to each of the others."""
    scheduler = make(KnownCost(10 * budget), 10 * budget)
    scheduler.set_weight("newcomer", weight)
    rounds = ceil(units / 10 / weight) + 1  # prices are floats, and it may come in the middle of a round
    keys = count()
    flying: list[Plan] = []
    for number in range(warm + -(-rounds * flows // budget) + 2 + (units > 10)):
        for i in range(flows):
            while scheduler.pending(Flow(str(i), INTERACTIVE)) < budget + 1:
                scheduler.add(item(next(keys), i))
        if number == warm:
            scheduler.add(item("new", "newcomer", units))
        plan = must(scheduler.plan(0.0, AMPLE))
        flying.append(plan)
        if len(flying) >= in_flight:
            scheduler.charge(done := flying.pop(0), sum(done.prices))
        if any(it.key == "new" for it in plan.items):
            return
    raise AssertionError("the newcomer still waits")
