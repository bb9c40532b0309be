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
from tests.unit.host.tables import claimed


class Broker:
    """Keeps whom it was told to blame."""

    worker = "w"

    def __init__(self) -> None:
        self.run: set[str] = set()
        self.told = 0

    async def mark(self, jobs: Iterable[Claimed], *, preparing: bool) -> bool:
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
