"""Arrival order, by name."""

from __future__ import annotations

import pytest

from fmplex_worker.scheduling import (
    INTERACTIVE,
    OFFLINE,
    DeficitRoundRobin,
    Fifo,
    Flow,
    Room,
    Scheduler,
    Share,
    make_scheduler,
)

from .harness import AMPLE, KnownCost, item, must


def picks(scheduler: Scheduler, room: Room = AMPLE) -> list[str]:
    plan = scheduler.plan(0.0, room)
    return [it.key for it in plan.items] if plan else []


def test_by_name() -> None:
    assert isinstance(make_scheduler("drr", KnownCost(10), 10, trickle=0.1), DeficitRoundRobin)
    assert isinstance(make_scheduler("fifo", KnownCost(10), 10), Fifo)
    with pytest.raises(ValueError, match="lottery"):
        make_scheduler("lottery", KnownCost(10), 10)


def test_arrival_order_within_room() -> None:
    scheduler = make_scheduler("fifo", KnownCost(50), 50)
    scheduler.add(item("first"))
    for n in range(8):
        scheduler.add(item(n, "ab"[n % 2], cls=(INTERACTIVE, OFFLINE)[n % 2]))
    assert picks(scheduler) == ["first", "0", "1", "2", "3"]
    assert picks(scheduler, Room(50, 1)) == ["4"]
    assert picks(scheduler, Room(0, 9)) == picks(scheduler, Room(9, 0)) == []
    assert [scheduler.remove("6") for _ in range(2)] == [item(6), None]
    assert picks(scheduler) == ["5", "7"]


def test_the_oldest_fixes_the_bucket_and_large_or_suspect_items_go_alone() -> None:
    scheduler = make_scheduler("fifo", KnownCost(50), 50)
    for key, bucket in (("1", "A"), ("2", "B"), ("3", "A"), ("4", "B")):
        scheduler.add(item(key, bucket=bucket))
    scheduler.add(item("suspect", alone=True))
    scheduler.add(item("large", units=80))
    scheduler.add(item("small"))
    order = [["1", "3"], ["2", "4"], ["suspect"], ["large"], ["small"], []]
    assert [picks(scheduler) for _ in order] == order


def test_the_books() -> None:
    scheduler = make_scheduler("fifo", KnownCost(50), 50)
    scheduler.set_weight("a", 2)
    scheduler.expect(Flow("a", INTERACTIVE), True)
    scheduler.add(item(1, "a", 10))
    scheduler.add(item(2, "b", 30))
    plan = must(scheduler.plan(0.0, AMPLE))
    for it in plan.items:
        scheduler.add(it)
    scheduler.charge(plan, 0.0)
    with pytest.raises(ValueError, match="settled"):
        scheduler.charge(plan, 1.0)
    assert scheduler.pending(Flow("a", INTERACTIVE)) == 1
    assert len(scheduler) == 2
    scheduler.charge(must(scheduler.plan(0.0, AMPLE)), 4.0)
    shares = scheduler.shares()
    a, b = Flow("a", INTERACTIVE), Flow("b", INTERACTIVE)
    assert [shares[flow].charged for flow in (a, b)] == pytest.approx([1.0, 3.0])
    assert shares[a] == Share(weight=2, charged=shares[a].charged, deficit=0.0, waiting=0)
    scheduler.forget("a")
    scheduler.budget = 70
    assert scheduler.budget == 70
    assert list(scheduler.shares()) == [b]
