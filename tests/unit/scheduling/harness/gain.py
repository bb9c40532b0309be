"""No gain from splitting work, or putting it into few large items, or going idle and coming back."""

from __future__ import annotations

from collections import deque
from itertools import count
from random import Random

from fmplex_worker.scheduling import Plan

from .service import by_flow
from .words import AMPLE, ROUNDING, KnownCost, Make, flow_queue, item, must

BUDGET = 32
RIVALS = {"b": 1.0, "c": 2.0}
LARGEST = 5  # units of a rival's item


def _others_until_done(make: Make, seed: int, pieces: list[int], weight: float) -> tuple[dict[str, float], float]:
    """What each rival got from when the work came to when the last of it ran; and the largest quantum."""
    rng, keys = Random(seed), count()
    scheduler = make(KnownCost(BUDGET, alpha=1.0, beta=0.05), BUDGET)
    for vfm, rival in RIVALS.items():
        scheduler.set_weight(vfm, rival)
    scheduler.set_weight("a", weight)
    queued, got = dict.fromkeys(RIVALS, 0), dict.fromkeys(RIVALS, 0.0)
    quantum, left, warm = 0.0, len(pieces), rng.randrange(6)
    for number in count():
        for vfm in RIVALS:
            while queued[vfm] <= BUDGET:
                queued[vfm] += (units := rng.randint(1, LARGEST))
                scheduler.add(item(next(keys), vfm, units))
        if number == warm:
            for units in pieces:
                scheduler.add(item(next(keys), "a", units))
        plan = must(scheduler.plan(0.0, AMPLE))
        quantum = max(quantum, flow_queue(scheduler).quantum)
        for it, price in zip(plan.items, plan.prices, strict=True):
            left -= it.flow.vfm == "a"
            if not left:
                return got, quantum
            if it.flow.vfm in RIVALS:
                queued[it.flow.vfm] -= it.units
                got[it.flow.vfm] += price * (number >= warm)
        scheduler.charge(plan, sum(plan.prices))
    raise AssertionError


def check_no_gain_by_splitting(make: Make, seed: int, work: int, pieces: int, weight: float) -> float:
    """The same work, whole or in pieces, is done when the others got the same, but for a round and an item. How near."""
    whole, quantum = _others_until_done(make, seed, [work], weight)
    split = [work // pieces + (n < work % pieces) for n in range(pieces)]
    parts, other_quantum = _others_until_done(make, seed, split, weight)
    quantum = max(quantum, other_quantum)
    price = KnownCost(BUDGET, alpha=1.0, beta=0.05).price
    worst = 0.0
    for vfm, rival in RIVALS.items():
        # D at the end differs by less than a round and an item, for it and for them; a unit, if pieces are uneven.
        bound = rival * (quantum + price(1) / weight) + rival * quantum + price(LARGEST)
        worst = max(worst, abs(whole[vfm] - parts[vfm]) / bound)
    assert worst <= 1 + ROUNDING
    return worst


def check_no_gain_by_coming_and_going(
    make: Make, seed: int, units: int, visits: int, in_flight: int, bias: float
) -> float:
    """A flow that goes idle after every so many passes (`visits`) gets while it is there what one of equal weight gets that
    stays, and for each coming at most what the other had to wait for just then: a round and an item. How near."""
    alpha, beta = 1.0, 0.05
    cost = KnownCost(BUDGET, alpha * bias, beta * bias)
    scheduler = make(cost, BUDGET)
    rng, keys = Random(seed), count()
    ahead = quantum = error = 0.0
    comings = 1
    flying: deque[tuple[bool, Plan]] = deque()

    def settle() -> None:
        nonlocal ahead, error
        there, plan = flying.popleft()
        seconds = alpha + beta * plan.units
        paid, priced = by_flow(plan, cost.apportion(plan.items, seconds)), by_flow(plan, plan.prices)
        error = max(error, *(abs(paid[vfm] - priced[vfm]) for vfm in paid))
        if there:
            ahead += paid["odd"] - paid["plain"]
        scheduler.charge(plan, seconds)

    waiting: dict[str, int] = {}
    plain = 0
    for number in range(48):
        there = number % (visits + 1) != visits
        comings += not there
        while there and sum(waiting.values()) <= BUDGET:
            waiting[key := str(next(keys))] = units
            scheduler.add(item(key, "odd", units))
        while not there and waiting:
            scheduler.remove(waiting.popitem()[0])
        while plain <= BUDGET:
            plain += (size := rng.randint(1, LARGEST))
            scheduler.add(item(next(keys), "plain", size))
        plan = must(scheduler.plan(0.0, AMPLE))
        quantum = max(quantum, flow_queue(scheduler).quantum)
        for it in plan.items:
            waiting.pop(it.key, None)
            plain -= it.units * (it.flow.vfm == "plain")
        flying.append((there, plan))
        if len(flying) >= in_flight:
            settle()
    while flying:
        settle()
    start = quantum + cost.price(units)  # that the odd one may have left in the end
    bound = start + comings * (quantum + cost.price(LARGEST) + 3 * in_flight * error)
    assert ahead <= bound
    return ahead / bound


def check_coming_and_going_loses_on_average(make: Make) -> None:
    """The bound is for the worst moments to come and to go. At any others a flow loses by it: credit is forfeited."""
    near = [
        check_no_gain_by_coming_and_going(make, seed, 4, visits, in_flight=1, bias=1.0)
        for seed in range(10)
        for visits in (1, 3, 7)
    ]
    assert sum(near) < 0
