"""Whose unit runs next: shares by weight, as golden values; and predictions that come right again by themselves."""

from __future__ import annotations

from collections import Counter

import pytest

from fmplex_worker.scheduling import INTERACTIVE, CostModel, DeficitRoundRobin, Flow, Item, Room
from fmplex_worker.scheduling.unit_queue import UnitQueue

JOBS = {"a": (1.0, 100), "b": (2.0, 100), "c": (1.0, 25)}  # weight, units


@pytest.mark.parametrize(
    ("expects", "shares", "counts"),
    [
        (True, (0.25, 0.4999, 0.2501), (651, 1302, 2047)),
        (False, (0.2893, 0.4345, 0.2762), (727, 1092, 2181)),
    ],
)
def test_items_that_run_alone_share_by_weight_if_more_of_each_is_expected(
    expects: bool, shares: tuple[float, ...], counts: tuple[int, ...]
) -> None:
    scheduler = DeficitRoundRobin(CostModel(256), 256)
    for name, (weight, units) in JOBS.items():
        scheduler.set_weight(name, weight)
        scheduler.expect(Flow(name, INTERACTIVE), expects)
        scheduler.add(Item(name, Flow(name, INTERACTIVE), "encode", units, alone=True))
    spent, ran = dict.fromkeys(JOBS, 0.0), Counter[str]()
    for _ in range(4000):
        plan = scheduler.plan(0.0, Room(10**6, 1))
        assert plan is not None
        item = plan.items[0]
        seconds = 0.001 + 1e-4 * item.units
        scheduler.charge(plan, seconds)
        spent[item.key] += seconds
        ran[item.key] += 1
        scheduler.add(item)
    total = sum(spent.values())
    assert [spent[name] / total for name in JOBS] == [pytest.approx(share, abs=1e-4) for share in shares]
    assert tuple(ran[name] for name in JOBS) == counts


def run(queue: UnitQueue, units: int, expects: bool = True) -> dict[str, float]:
    """So many units of all jobs; the part of the time that each had."""
    for name, (weight, cost) in JOBS.items():
        queue.add(name, weight)
        queue.offer(name, "forward", cost, 0.0)
    spent = dict.fromkeys(JOBS, 0.0)
    now = 0.0
    for _ in range(units):
        name = queue.pick(now)
        assert name is not None
        cost = JOBS[name][1]
        now += 0.001 + 1e-4 * cost
        spent[name] += 0.001 + 1e-4 * cost
        queue.charge(0.001 + 1e-4 * cost, now)
        queue.offer(name, "forward", cost, now)
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def check_shares(queue: UnitQueue) -> None:
    for name, share in run(queue, 2000).items():
        assert share == pytest.approx(JOBS[name][0] / 4, rel=0.03)


def test_trainings_share_by_weight() -> None:
    check_shares(UnitQueue())


def test_who_expects_nothing_is_caught() -> None:
    class ExpectsNothing(UnitQueue):
        def add(self, key: str, weight: float) -> None:
            super().add(key, weight)
            self._drr.expect(Flow(key, INTERACTIVE), False)

    with pytest.raises(AssertionError):
        check_shares(ExpectsNothing())


def one(kind: str = "forward") -> UnitQueue:
    queue = UnitQueue()
    queue.add("a", 1.0)
    queue.offer("a", kind, 100.0, 0.0)
    assert queue.pick(0.0) == "a"
    return queue


def again(queue: UnitQueue, seconds: float, now: float, kind: str = "forward", cost: float = 100.0) -> None:
    queue.charge(seconds, now)
    queue.offer("a", kind, cost, now)
    assert queue.pick(now) == "a"


def test_each_kind_is_predicted_by_itself_and_its_first_unit_says_nothing() -> None:
    queue = one()
    assert queue.predict(0.0) == pytest.approx(0.01)
    again(queue, 5.0, 0.0)
    assert queue.predict(0.0) == pytest.approx(0.01)
    for _ in range(9):
        again(queue, 0.02, 0.0)
    again(queue, 0.02, 0.0, "backward")
    assert queue.predict(0.0) == pytest.approx(0.01)
    again(queue, 9.0, 0.0, "backward")
    again(queue, 0.06, 0.0)
    assert queue.predict(0.0) == pytest.approx(0.02, rel=0.05)


def test_what_was_slow_once_is_tried_again_some_day() -> None:
    queue = one()
    for _ in range(20):
        again(queue, 1.0, 0.0)
    assert queue.predict(9.0) == pytest.approx(1.0, rel=0.01)
    assert queue.predict(20.0) == pytest.approx(0.5, rel=0.01)
    assert queue.predict(60.0) < 0.05
    again(queue, 0.02, 60.0)
    assert queue.predict(60.0) > 0.5, "one does not make it fast"


@pytest.mark.parametrize("held_up", [1, 2, 5, 15])
def test_a_unit_that_was_held_up_does_not_keep_the_next_from_running(held_up: int) -> None:
    queue = one()
    for number in range(held_up + 1):
        again(queue, 1.0 if number == held_up else 0.02, 0.0)
    assert queue.predict(0.0) < 0.05


@pytest.mark.parametrize("before", [2, 6, 20])
def test_a_device_that_has_become_slower_is_found_out_within_sixteen_units(before: int) -> None:
    queue = one()
    for number in range(before + 16):
        again(queue, 0.02 if number < before else 0.2, 0.0)
    assert queue.predict(0.0) > 0.1


def test_a_training_that_is_removed_is_gone_whether_its_unit_waits_or_is_next() -> None:
    queue = one()
    queue.add("b", 1.0)
    queue.offer("b", "forward", 100.0, 0.0)
    queue.remove("a")
    assert queue.pick(0.0) == "b"
    queue.remove("b")
    assert queue.pick(0.0) is None


def test_a_unit_that_is_withdrawn_costs_nothing() -> None:
    queue = one()
    queue.withdraw("a")
    assert queue.pick(0.0) is None
    queue.offer("a", "forward", 100.0, 0.0)
    assert queue.pick(0.0) == "a"
    assert sum(share.charged for share in queue._drr.shares().values()) == pytest.approx(0.0)


def test_nothing_is_kept_of_a_training_that_is_removed() -> None:
    queue = UnitQueue()
    for number in range(20):
        queue.add(f"job-{number}", 2.0)
        queue.offer(f"job-{number}", "forward", 100.0, 0.0)
        assert queue.pick(0.0) == f"job-{number}"
        queue.charge(0.02, 0.0)
        queue.remove(f"job-{number}")
    assert not queue._drr.weights
    assert not queue._drr.shares()
