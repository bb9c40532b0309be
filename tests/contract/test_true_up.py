"""A claim advances a flow's virtual time by an estimate; settling puts it right by what the jobs have cost."""

from __future__ import annotations

import pytest

from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE
from tests.contract.harness import Bench, answer, job

COST = {"dear": 3.0, "cheap": 1.0, "free": 0.0}  # units a job, whatever they seemed to be


async def served(worker: Consumer, jobs: int, room: int = 8) -> dict[str, int]:
    """Take so many jobs, a few at a time, and settle them at their cost; how many each flow got."""
    got: dict[str, int] = {}
    while sum(got.values()) < jobs:
        claim = await worker.claim({INTERACTIVE: room})
        assert claim.jobs
        for claimed in claim.jobs:
            claimed.spent = COST.get(claimed.flow.vfm)
            got[claimed.flow.vfm] = got.get(claimed.flow.vfm, 0) + 1
        assert all(await worker.settle([(claimed, answer()) for claimed in claim.jobs]))
    return got


@pytest.mark.parametrize("weight", [1.0, 2.0])
async def test_shares_are_of_what_jobs_cost(bench: Bench, weight: float) -> None:
    await bench.serve("dear", weight=weight)
    await bench.serve("cheap")
    worker = await bench.worker()
    await bench.enqueue(*(job(vfm, units=2) for _ in range(400) for vfm in ("dear", "cheap")))
    got = await served(worker, 320)
    assert got["dear"] * COST["dear"] / weight == pytest.approx(got["cheap"] * COST["cheap"], rel=0.1)


async def test_two_workers_charge_one_flow(bench: Bench) -> None:
    await bench.serve("dear", "cheap")
    workers = [await bench.worker("w1"), await bench.worker("w2")]
    await bench.enqueue(*(job(vfm) for _ in range(400) for vfm in ("dear", "cheap")))
    total = {"dear": 0, "cheap": 0}
    for turn in range(40):
        for vfm, n in (await served(workers[turn % 2], 8)).items():
            total[vfm] += n
    assert total["dear"] * 3 == pytest.approx(total["cheap"], rel=0.1)


async def test_what_did_not_run_costs_nothing(bench: Bench) -> None:
    await bench.serve("free", "other")
    worker = await bench.worker()
    await bench.enqueue(*(job("free", units=50) for _ in range(4)), *(job("other") for _ in range(40)))
    await served(worker, 20, room=4)
    await bench.enqueue(*(job("free") for _ in range(20)))
    ready = await bench.ready()
    assert ready["free"] <= ready["other"]  # not behind the 200 units that it never had


async def test_a_job_is_charged_once_and_by_who_owns_it(bench: Bench) -> None:
    await bench.serve("a")
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue(job(units=5), job(units=5))
    first = (await bench.claimed(worker, room=1))[0]
    before = (await bench.ready())["a"]
    first.spent = 25.0
    assert await other.settle([(first, answer())]) == [False]
    assert await bench.ready() == {"a": before}
    assert await worker.settle([(first, answer())]) == [True]
    assert await worker.settle([(first, answer())]) == [False]
    assert await bench.ready() == {"a": before + 20}


async def test_a_given_back_job_advances_its_flow_once(bench: Bench) -> None:
    await bench.serve("a", weight=2.0)
    worker = await bench.worker()
    await bench.enqueue(job(units=8), job(units=8))
    claimed = await bench.claimed(worker, room=1)
    before = (await bench.ready())["a"]
    assert await worker.release(claimed) == 1
    again = await bench.claimed(worker, room=1)
    assert [c.entry for c in again] == [c.entry for c in claimed]
    again[0].spent = 8.0
    assert await worker.settle([(again[0], answer())]) == [True]
    assert await bench.ready() == {"a": before}


async def test_settling_for_a_vfm_that_is_gone_leaves_no_trace(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    [claimed] = await bench.claimed(worker)
    await bench.redis.hdel(bench.keys.vfms, "a", "a:v:interactive")
    claimed.spent = 100.0
    await worker.settle([(claimed, answer())])
    fields = [name.decode() for name in await bench.redis.hkeys(bench.keys.vfms)]
    assert not [name for name in fields if name == "a" or name.startswith("a:v")]
    assert await bench.ready() == {}


async def test_what_was_forgiven_is_not_given_back(bench: Bench) -> None:
    """A flow that comes back begins at the present, whatever it owed; old jobs that turn out to be free are no head start."""
    await bench.serve("a", "busy")
    worker = await bench.worker()
    await bench.enqueue(job("a", units=50))
    [before] = await bench.claimed(worker)
    await bench.enqueue(*(job("busy", units=10) for _ in range(40)))
    await served(worker, 20)
    await bench.enqueue(job("a"))
    at = (await bench.ready())["a"]
    assert at > 50
    before.spent = 0.0
    assert await worker.settle([(before, answer())]) == [True]
    assert (await bench.ready())["a"] == at
