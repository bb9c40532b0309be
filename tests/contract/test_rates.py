"""Rates: in true tokens, and no limit of one vFM, no clock, and no job that breaks a script is felt by others."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fmplex_broker.errors import BrokerFault
from fmplex_broker.specs.heads import Generation
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.producer import EnqueueResult
from fmplex_broker.streams.queue_client import QueueClient, cancel_all
from tests.contract.harness import Bench, answer, job

HOUR_MS = 3_600_000


async def limited(bench: Bench, units: int, vfm: str = "a") -> EnqueueResult:
    """Send a job that must be over the rate."""
    [got] = await bench.producer().enqueue([job(vfm, units=units)])
    assert got.status == "limited"
    return got


async def now_ms(bench: Bench) -> int:
    seconds, micros = await bench.redis.time()
    return int(seconds * 1000 + micros // 1000)


async def ran(worker: Consumer, jobs: list[Claimed], tokens: int | None) -> None:
    for claimed in jobs:
        claimed.tokens = tokens
    assert all(await worker.settle([(claimed, answer()) for claimed in jobs]))


# --- a limit breaks nobody --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-300, 5e-324, 1e-9, 1e300, float("inf"), float("nan"), -1.0, 0.0])
async def test_no_rate_whatever_breaks_its_neighbours(bench: Bench, rate: float) -> None:
    await bench.serve("b", "c")
    await bench.serve("a", rate=rate)
    for units in (1, 10**6, 10**9):
        jobs = [job("b"), job("a", units=units), job("c"), job("a", units=units)]
        got = await bench.enqueue(*jobs)
        assert (got[0], got[2]) == ("new", "new")
        assert {got[1], got[3]} <= {"new", "limited"}


@pytest.mark.parametrize("rate", [1e-300, 1e-3])
async def test_a_very_low_rate_takes_one_job_and_then_says_to_come_back(bench: Bench, rate: float) -> None:
    await bench.serve("a", rate=rate)
    assert await bench.enqueue(job(units=1000)) == ["new"]
    assert 0 < (await limited(bench, 1)).wait_ms <= 86_400_000
    assert 0 < await bench.redis.pttl(bench.keys.prefix + "rate:interactive:a") <= 30 * 86_400_000


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-300, 1e300, float("inf"), float("nan")])
async def test_no_weight_whatever_stops_the_line(bench: Bench, weight: float) -> None:
    await bench.serve("a", weight=weight)
    await bench.serve("b")
    worker = await bench.worker()
    for _ in range(3):
        assert await bench.enqueue(job("a", units=10), job("b", units=10)) == ["new", "new"]
        jobs = await bench.claimed(worker)
        assert {claimed.flow.vfm for claimed in jobs} == {"a", "b"}
        for claimed in jobs:
            claimed.spent = 20.0
        assert await worker.settle([(claimed, answer()) for claimed in jobs]) == [True, True]


@pytest.mark.parametrize("spent", [float("nan"), float("inf"), -float("inf"), 1e300])
async def test_what_a_worker_mismeasures_stops_nobody(bench: Bench, spent: float) -> None:
    await bench.serve("a", "b", rate=1e6)
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("b"))
    jobs = await bench.claimed(worker)
    jobs[0].spent = spent
    assert await worker.settle([(claimed, answer()) for claimed in jobs]) == [True, True]
    assert await bench.enqueue(job("a"), job("b")) == ["new", "new"]
    assert len(await bench.claimed(worker)) == 2


async def test_a_job_that_breaks_the_script_breaks_it_alone(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    jobs = [job("ab"[n % 2], key=f"k{n}") for n in range(10)]
    await bench.redis.rpush(bench.keys.prefix + "idem:k4", "not a string")
    await bench.redis.pexpire(bench.keys.prefix + "idem:k4", 60_000)
    got = await bench.producer().enqueue(jobs)
    assert [g.status for g in got] == ["dup"] * 4 + ["failed"] + ["new"] * 5
    assert all(g.job == j.job for g, j in zip(got, jobs, strict=True))
    assert await bench.rings() >= 1  # by the first sending
    assert {claimed.job for claimed in await bench.claimed(worker)} == {j.job for j in jobs if j is not jobs[4]}


async def test_callers_who_share_its_round_trip_do_not_notice(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", "b")
    await bench.redis.rpush(bench.keys.prefix + "idem:a:bad:0", "not a string")
    await bench.redis.pexpire(bench.keys.prefix + "idem:a:bad:0", 60_000)
    calls = [session.submit("b", ["x"]) for _ in range(5)]
    got = await asyncio.gather(session.submit("a", ["x"], idempotency_key="bad"), *calls, return_exceptions=True)
    assert isinstance(got[0], BrokerFault)
    assert all(isinstance(pending, list) for pending in got[1:])
    assert (await bench.depth("a"), await bench.depth("b")) == (0, 5)


async def test_a_cancel_that_breaks_the_script_breaks_it_alone(bench: Bench) -> None:
    await bench.serve("a")
    jobs = [job(key=f"k{n}") for n in range(4)]
    await bench.enqueue(*jobs)
    await bench.redis.delete(bench.keys.prefix + "idem:k1")
    await bench.redis.rpush(bench.keys.prefix + "idem:k1", "not a string")
    await bench.redis.pexpire(bench.keys.prefix + "idem:k1", 60_000)
    got = await bench.producer().cancel([(j.flow, j.job, j.idem) for j in jobs])
    assert (got[1:], await bench.depth()) == (["gone", "cancelled", "cancelled"], 1)


# --- the clock is set back --------------------------------------------------------------------------------------------


async def test_a_rated_vfm_serves_on_when_the_clock_was_set_back(bench: Bench) -> None:
    """Its bucket was last seen an hour from now."""
    await bench.serve("a", rate=1000)
    await bench.redis.set(bench.keys.prefix + "rate:interactive:a", f"0|{await now_ms(bench) + HOUR_MS}", px=HOUR_MS)
    got = await limited(bench, 100)
    assert got.wait_ms <= 100
    await asyncio.sleep(got.wait_ms / 1000)  # the promise under test
    assert await bench.enqueue(job(units=100)) == ["new"]


async def test_a_bucket_from_the_future_holds_what_it_held(bench: Bench) -> None:
    await bench.serve("a", rate=1000)
    await bench.redis.set(bench.keys.prefix + "rate:interactive:a", f"700|{await now_ms(bench) + HOUR_MS}", px=HOUR_MS)
    assert await bench.enqueue(job(units=700)) == ["new"]
    await limited(bench, 200)


async def test_what_is_resident_elsewhere_is_not_left_there_for_an_hour(bench: Bench) -> None:
    """Its oldest job was added an hour from now."""
    await bench.serve("a")
    worker, owner = await bench.worker("w1"), await bench.worker("w2")
    await owner.announce_resident(["a"], [])
    await bench.enqueue(job(id="now"))
    [(entry, fields)] = await bench.redis.xrange(bench.keys.queue(job().flow))
    await bench.redis.xdel(bench.keys.queue(job().flow), entry)
    await bench.redis.xadd(bench.keys.queue(job().flow), fields, id=f"{await now_ms(bench) + HOUR_MS}-0")
    claim = await worker.claim({"interactive": 5}, steal_ms=50)
    assert [claimed.job for claimed in claim.jobs] == ["now"]


async def test_a_dead_worker_is_noticed_though_the_clock_was_set_back(bench: Bench) -> None:
    """All leases end an hour from now; the first beat of the living puts them right."""
    lease_ms = 3_000
    living, dead, gone = [await bench.worker(name, lease_ms=lease_ms) for name in ("living", "dead", "gone")]
    await bench.lapse(gone)
    later = await now_ms(bench) + HOUR_MS
    await bench.redis.zadd(bench.keys.leases, {"living": later + lease_ms, "dead": later + 1_000})
    assert (await living.beat()).alive
    leases = {name.decode(): at for name, at in await bench.redis.zrange(bench.keys.leases, 0, -1, withscores=True)}
    now = await now_ms(bench)
    assert leases["living"] <= now + lease_ms
    assert leases["dead"] <= now + 1_000
    assert leases["gone"] > 0  # not condemned by that
    assert (await dead.beat()).alive


# --- true tokens ------------------------------------------------------------------------------------------------------


async def test_what_was_estimated_too_high_is_given_back(bench: Bench) -> None:
    await bench.serve("a", rate=100)
    worker = await bench.worker()
    await bench.enqueue(job(units=1000))
    assert (await limited(bench, 1)).wait_ms > 8_900
    await ran(worker, await bench.claimed(worker), tokens=10)
    assert await bench.enqueue(job(units=90)) == ["new"]


async def test_what_was_estimated_too_low_is_charged(bench: Bench) -> None:
    await bench.serve("a", rate=100)
    worker = await bench.worker()
    await bench.enqueue(job(units=1))
    await ran(worker, await bench.claimed(worker), tokens=1000)
    assert 8_900 < (await limited(bench, 1)).wait_ms <= 9_100


async def test_what_nobody_has_measured_costs_its_estimate(bench: Bench) -> None:
    await bench.serve("a", rate=100)
    worker = await bench.worker()
    await bench.enqueue(job(units=300))
    await ran(worker, await bench.claimed(worker), tokens=None)
    assert 1_800 < (await limited(bench, 1)).wait_ms <= 2_010


async def test_jobs_of_a_batch_are_put_right_together(bench: Bench) -> None:
    await bench.serve("a", rate=100)
    worker = await bench.worker()
    await bench.enqueue(*(replace(job(units=50), charge=charge) for charge in (200, 0, 0, 0)))
    await limited(bench, 1)
    await ran(worker, await bench.claimed(worker), tokens=5)
    assert await bench.enqueue(job(units=80)) == ["new"]
    assert (await limited(bench, 60)).wait_ms > 300


async def test_a_refund_never_fills_more_than_the_bucket(bench: Bench) -> None:
    await bench.serve("a", rate=10)
    worker = await bench.worker()
    await bench.enqueue(job(units=5))
    jobs = await bench.claimed(worker)
    jobs[0].units = 1_000_000  # a worker that is wrong about what was estimated
    await ran(worker, jobs, tokens=0)
    assert await bench.enqueue(job(units=10)) == ["new"]
    assert (await limited(bench, 10)).wait_ms > 900


async def test_a_late_settle_puts_nothing_right(bench: Bench) -> None:
    await bench.serve("a", rate=10)
    worker, other = await bench.worker("w1"), await bench.worker("w2")
    await bench.enqueue(job(units=1000))
    [mine] = await bench.claimed(worker)
    mine.tokens = 0
    assert await other.settle([(mine, answer())]) == [False]
    await limited(bench, 1)


async def test_a_cancelled_job_that_never_ran_costs_nothing(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation(), rate=1000)
    calls = await session.submit("a", ["x"], {"max_tokens": 400}, n=3)
    await limited(bench, 10)
    await cancel_all(calls)
    assert await bench.enqueue(job(units=990)) == ["new"]


async def test_a_call_that_was_refused_half_way_costs_nothing(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation(), rate=1000, cap=2)
    with pytest.raises(Exception, match="full"):
        await session.submit("a", ["x"] * 3, {"max_tokens": 400})
    assert await bench.enqueue(job(units=990)) == ["new"]


async def test_jobs_behind_one_that_was_known_pay_too(bench: Bench, session: QueueClient) -> None:
    """Else a call whose first input is a repeat would be free."""
    await bench.serve("a", rate=10)
    await session.submit("a", ["x"], idempotency_key="k")
    await session.submit("a", ["x", *["word " * 20] * 5], idempotency_key="k")
    assert (await limited(bench, 1)).wait_ms > 10_000


async def test_lifting_a_limit_leaves_no_debt(bench: Bench) -> None:
    await bench.serve("a", rate=10)
    await bench.enqueue(job(units=1000))
    await limited(bench, 1)
    await bench.scripts("alter", bench.keys.vfms, ["a", 2, "{}", 100, 1.0, 0, 0])
    assert await bench.enqueue(job(units=1000)) == ["new"]
