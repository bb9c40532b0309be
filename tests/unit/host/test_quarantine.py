"""Who is blamed when a worker dies: what may have killed it, and nobody beside that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fmplex_broker.streams.claims import Claimed
from fmplex_worker.host.active_job import ActiveJob
from fmplex_worker.host.blame import Blame
from fmplex_worker.host.flight import Flight
from fmplex_worker.host.quarantine import Quarantine
from tests.unit.host.tables import claimed


class Broker:
    """Keeps whom it was told to blame."""

    worker = "w"

    def __init__(self) -> None:
        self.run: set[str] = set()
        self.told = 0
        self.preparing = False

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        self.run, self.told, self.preparing = {job.job for job in jobs}, self.told + 1, preparing
        return True


def flight(*numbers: int, suspects: tuple[int, ...] = ()) -> Flight:
    jobs = [replace(claimed(n), attempts=2 if n in suspects else 1) for n in numbers]
    plan: Any = None
    return Flight(plan, [ActiveJob(job, 0.0) for job in jobs], asyncio.get_running_loop().create_future())


async def test_a_redelivered_job_is_blamed_and_not_who_shares_its_pass() -> None:
    broker = Broker()
    blame = Blame(broker)  # type: ignore[arg-type]
    await blame.mark([flight(1, 2, 3)])
    assert broker.run == {"job1", "job2", "job3"}
    for _ in range(3):
        await blame.mark([flight(1, 2, 3, 4, suspects=(4,))])
        assert broker.run == {"job4"}, "those of which it was told before are no suspects now"
    assert broker.told == 2, "once for each change"
    await blame.mark([flight(1, 2, 3)])
    assert broker.run == {"job1", "job2", "job3"}
    await blame.mark([flight(5, suspects=(5,)), flight(1, 2)])
    assert broker.run == {"job1", "job2", "job5"}, "each pass has its own"


def job(n: int, attempts: int = 1) -> ActiveJob:
    return ActiveJob(replace(claimed(n), attempts=attempts), 0.0)


async def test_what_is_prepared_by_itself_is_blamed_beside_the_passes() -> None:
    broker = Broker()
    blame = Blame(broker)  # type: ignore[arg-type]
    await blame.mark([flight(1, 2)])
    alone = job(3, attempts=2)
    await blame.prepare([alone])
    assert broker.run == {"job1", "job2", "job3"}
    blame.prepared([alone])
    await blame.mark([flight(4)])
    assert broker.run == {"job4"}


async def test_a_pass_that_has_landed_is_not_blamed_for_what_comes_after_it() -> None:
    """Of two redelivered jobs one has run, and the other one is prepared now."""
    broker = Broker()
    blame = Blame(broker)  # type: ignore[arg-type]
    first, second = flight(1, suspects=(1,)), job(2, attempts=2)
    await blame.mark([first])
    blame.landed(first)
    await blame.prepare([second])
    assert broker.run == {"job2"}


async def test_what_claims_brought_stays_marked_until_it_is_prepared() -> None:
    broker = Broker()
    blame = Blame(broker)  # type: ignore[arg-type]
    quick = [job(1), job(2)]
    blame.note_claimed(quick)
    assert [c.job for c in blame.claimed] == ["job1", "job2"]
    await blame.mark([flight(3)])
    assert (broker.run, broker.preparing) == ({"job3"}, True)
    blame.prepared(quick)
    await blame.mark([flight(4)])
    assert (broker.run, broker.preparing) == ({"job4"}, False)


async def test_records_come_one_after_the_other() -> None:
    """A pass and a preparation at the same time: the older record must not be the last."""
    broker = Broker()
    blame, gate, mark = Blame(broker), asyncio.Event(), broker.mark  # type: ignore[arg-type]

    async def late(jobs: Iterable[Claimed], *, preparing: bool, tuning: str = "") -> bool:
        jobs = list(jobs)
        await gate.wait()
        return await mark(jobs, preparing=preparing)

    broker.mark = late  # type: ignore[method-assign]
    both = asyncio.gather(blame.mark([flight(1)]), blame.prepare([job(2)]))
    await asyncio.sleep(0)
    gate.set()
    await both
    assert broker.run == {"job1", "job2"}


async def test_who_leaves_blames_nobody_from_then_on() -> None:
    broker = Broker()
    blame = Blame(broker)  # type: ignore[arg-type]
    await blame.mark([flight(1, 2)])
    await blame.pardon()
    assert broker.run == set()
    await blame.mark([flight(3)])
    await blame.prepare([job(4)])
    assert (broker.run, broker.told) == (set(), 2)


def test_turns_of_redelivered_jobs() -> None:
    turns, went = Quarantine(), []
    go = went.append
    a, b, c = job(1, 2), job(2, 2), job(3, 2)
    assert turns.admit(job(9), go), "one that comes for the first time waits for nobody"
    assert turns.admit(a, go)
    assert turns.admit(a, go), "it has the turn"
    assert not turns.admit(b, go)
    assert not turns.admit(c, go)
    turns.leave(b)  # cancelled
    turns.leave(a)
    assert went == [c]
    assert not turns.admit(a, go)
    turns.leave(c)
    assert went == [c, a]
    turns.leave(a)
    turns.leave(a)
    assert turns.admit(b, go)
