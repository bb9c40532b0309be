"""claim with several workers: jobs go where their vFM is resident, for a while; nobody waits for the dead or for nobody."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from fmplex_broker.specs.vfm import Targets
from fmplex_broker.streams.claims import Claim, Terms
from fmplex_broker.streams.consumer import HERE_TTL_MS, Consumer
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from tests.contract.harness import Bench, job
from tests.support.waiting import until_soon

LONG_MS = 60_000


async def ask(worker: Consumer, steal_ms: int = LONG_MS, *, strangers: bool = True, room: int = 256) -> Claim:
    claim = await worker.claim({INTERACTIVE: room}, steal_ms=steal_ms, strangers=strangers)
    assert claim.state == "ok"
    return claim


def vfms(claim: Claim) -> set[str]:
    return {j.flow.vfm for j in claim.jobs}


async def drained(worker: Consumer, *, strangers: bool = True, calls: int = 20) -> Counter[str]:
    """Claim as a worker does, until it would sleep."""
    seen: Counter[str] = Counter()
    for _ in range(calls):
        claim = await ask(worker, strangers=strangers)
        seen.update(j.flow.vfm for j in claim.jobs)
        if not claim.jobs and not claim.more:
            return seen
    raise AssertionError("it never sleeps")


# --- left to whom has it ----------------------------------------------------------------------------------------------


async def test_a_flow_that_is_resident_elsewhere_is_left_to_that_worker(bench: Bench) -> None:
    await bench.serve("a", "b")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await here.announce_resident(["b"], [])
    await bench.enqueue(job("a"), job("b"))
    claim = await ask(here)
    assert (vfms(claim), claim.more) == ({"b"}, False)
    assert 0 < claim.wait_ms <= LONG_MS  # how long to sleep at most
    assert vfms(await ask(there)) == {"a"}
    assert (await ask(here)).wait_ms == 0  # nothing to wait for any more


async def test_it_is_taken_once_its_oldest_job_has_waited_long_enough(bench: Bench) -> None:
    """On the server's clock; `wait_ms` counts down to that moment, and then nothing holds it back."""
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await bench.enqueue(job("a"))
    waits: list[int] = []

    async def taken() -> bool:
        claim = await ask(here, steal_ms=150)
        waits.append(claim.wait_ms)
        return vfms(claim) == {"a"}

    await until_soon(taken)
    assert len(waits) > 1
    assert waits[:-1] == sorted(waits[:-1], reverse=True)
    assert waits[0] <= 150
    assert min(waits[:-1]) > 0
    assert waits[-1] == 0


async def test_it_is_the_oldest_undelivered_job_that_counts(bench: Bench) -> None:
    """Jobs in the hands of the worker that has the vFM wait for nobody."""
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await bench.enqueue(job("a", id="old"))

    async def aged() -> bool:
        seconds, micros = await bench.redis.time()
        entry = (await bench.redis.xrange(bench.keys.queue(job("a").flow), count=1))[0][0]
        return seconds * 1000 + micros // 1000 - int(entry.split(b"-")[0]) > 120

    await until_soon(aged)
    assert [j.job for j in (await ask(there, room=1)).jobs] == ["old"]
    await bench.enqueue(job("a", id="young"))
    claim = await ask(here, steal_ms=120)
    assert claim.jobs == []
    assert 0 < claim.wait_ms <= 120


async def test_the_shortest_wait_is_told(bench: Bench) -> None:
    await bench.serve("old", "young")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["old", "young"], [])
    await bench.enqueue(job("old"))
    first = (await ask(here)).wait_ms

    async def later() -> bool:
        return (await ask(here)).wait_ms < first - 20

    await until_soon(later)
    await bench.enqueue(job("young"))
    assert (await ask(here)).wait_ms < first - 20


async def test_what_is_resident_on_both_may_be_taken_by_either(bench: Bench) -> None:
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    for worker in (here, there):
        await worker.announce_resident(["a"], [])
    for worker in (here, there):
        await bench.enqueue(job("a"))
        assert vfms(await ask(worker)) == {"a"}


async def test_what_has_gone_from_there_is_taken_at_once(bench: Bench) -> None:
    await bench.serve("a", "b")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a", "b"], [])
    await bench.enqueue(job("a"), job("b"))
    await there.announce_resident([], ["a"])
    assert vfms(await ask(here)) == {"a"}


async def test_what_is_resident_nowhere_is_taken_at_once(bench: Bench) -> None:
    await bench.serve("a", "b")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["b"], [])
    await bench.enqueue(job("a"))
    claim = await ask(here)
    assert (vfms(claim), claim.wait_ms) == ({"a"}, 0)


async def test_one_worker_alone_never_waits(bench: Bench) -> None:
    await bench.serve("a")
    gone = await bench.worker("gone")
    await gone.announce_resident(["a"], [])
    await gone.leave()
    await bench.enqueue(job("a"))
    assert vfms(await ask(await bench.worker("alone"))) == {"a"}


async def test_nobody_waits_for_a_worker_whose_lease_has_expired(bench: Bench) -> None:
    await bench.serve("a")
    here, dead = await bench.worker("here"), await bench.worker("dead")
    await dead.announce_resident(["a"], [])
    await bench.enqueue(job("a"))
    assert vfms(await ask(here)) == set()
    await bench.lapse(dead)
    assert vfms(await ask(here)) == {"a"}


async def test_without_a_steal_time_nothing_is_left(bench: Bench) -> None:
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await bench.enqueue(job("a"))
    assert vfms(await ask(here, steal_ms=0)) == {"a"}


async def test_what_was_given_back_is_taken_by_anybody(bench: Bench) -> None:
    """Its caller has waited long enough."""
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await bench.enqueue(job("a"))
    await there.release((await ask(there)).jobs)
    assert vfms(await ask(here)) == {"a"}


# --- not hidden -------------------------------------------------------------------------------------------------------


async def test_what_is_resident_here_is_not_hidden_behind_many_strangers(bench: Bench) -> None:
    strangers = [f"s{i:03}" for i in range(200)]
    await bench.serve("mine", *strangers)
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(strangers, [])
    await here.announce_resident(["mine"], [])
    await bench.enqueue(job("mine", units=50))
    await ask(here)  # mine has had much: now it comes after all the others
    await bench.enqueue(*(job(v) for v in strangers), job("mine", id="last"))
    claim = await ask(here)
    assert [j.job for j in claim.jobs] == ["last"]
    assert (claim.more, claim.wait_ms > 0) == (False, True)
    assert sum((await drained(there)).values()) == 200


async def test_many_strangers_are_all_taken_once_they_have_waited(bench: Bench) -> None:
    strangers = [f"s{i:03}" for i in range(150)]
    await bench.serve(*strangers)
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(strangers, [])
    await bench.enqueue(*(job(v) for v in strangers))
    got: set[str] = set()

    async def all_taken() -> bool:
        got.update(vfms(await ask(here, steal_ms=30)))
        return len(got) == 150

    await until_soon(all_taken)


# --- only what is resident here ---------------------------------------------------------------------------------------


async def test_without_strangers_only_resident_flows_are_taken_and_it_sleeps(bench: Bench) -> None:
    await bench.serve("mine", "new", "theirs")
    here, there = await bench.worker("here"), await bench.worker("there")
    await here.announce_resident(["mine"], [])
    await there.announce_resident(["theirs"], [])
    await bench.enqueue(*(job(v) for v in ("mine", "new", "theirs")))
    claim = await ask(here, strangers=False)
    assert (vfms(claim), claim.more) == ({"mine"}, False)
    claim = await ask(here, strangers=False)
    assert (claim.jobs, claim.more, claim.wait_ms) == ([], False, 0)


async def test_without_strangers_and_nothing_resident_nothing_is_taken(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(job("a"))
    claim = await ask(await bench.worker(), strangers=False)
    assert (claim.jobs, claim.more, claim.wait_ms) == ([], False, 0)


@pytest.mark.parametrize("strangers", [3, 100])
async def test_without_strangers_given_back_jobs_are_looked_at_in_the_same_way(bench: Bench, strangers: int) -> None:
    others = [f"s{i:03}" for i in range(strangers)]
    await bench.serve("mine", *others)
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in others), job("mine"))
    jobs = [j for _ in range(3) for j in (await ask(worker)).jobs]
    assert len(jobs) == strangers + 1
    await worker.release([j for j in jobs if j.flow.vfm != "mine"])
    await worker.release([j for j in jobs if j.flow.vfm == "mine"])  # behind all the others
    await worker.announce_resident(["mine"], [])
    assert await drained(worker, strangers=False) == {"mine": 1}
    assert len(await drained(worker)) == strangers


async def test_without_strangers_many_resident_flows_are_all_taken_and_then_it_sleeps(bench: Bench) -> None:
    mine, others = [f"m{i:03}" for i in range(100)], [f"s{i:03}" for i in range(100)]
    await bench.serve(*mine, *others)
    worker = await bench.worker()
    await worker.announce_resident(mine, [])
    await bench.enqueue(*(job(v) for v in others + mine))
    assert await drained(worker, strangers=False) == Counter(mine)


async def test_given_back_jobs_of_more_flows_than_a_call_visits_are_all_found(bench: Bench) -> None:
    names = [f"s{i:03}" for i in range(150)]
    await bench.serve(*names)
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in names))
    await worker.release([j for _ in range(4) for j in (await ask(worker)).jobs])
    assert await drained(worker) == Counter(names)


# --- weights ----------------------------------------------------------------------------------------------------------


async def test_weights_and_targets_come_with_the_jobs_and_follow_a_change(bench: Bench) -> None:
    await bench.serve("a", weight=2.5)
    await bench.serve("b")
    worker = await bench.worker()
    await bench.enqueue(job("a"), job("b"), job("b", cls=OFFLINE))
    assert (await worker.claim({INTERACTIVE: 9, OFFLINE: 9})).terms == {"a": Terms(2.5), "b": Terms(1.0)}
    state, _ = await bench.scripts("alter", bench.keys.vfms, ["a", 2, "{}", 100, 4.0, 0, 0, 33.3, 200, 1e12])
    assert state == b"ok"
    await bench.enqueue(job("a"))
    claim = await ask(worker)
    assert claim.terms["a"] == Terms(4.0, Targets(33.3, 200, 1e9))  # kept within bounds
    await worker.release(claim.jobs)
    await bench.scripts("alter", bench.keys.vfms, ["a", 3, "{}", 100, 0.5, 0, 0])
    assert (await ask(worker)).terms["a"] == Terms(0.5)  # of given-back ones too


# --- the hint itself --------------------------------------------------------------------------------------------------


async def test_the_hint_ends_by_itself(bench: Bench) -> None:
    worker = await bench.worker()
    await worker.announce_resident([f"v{i}" for i in range(2500)], [])
    key = bench.keys.here("w1")
    assert await bench.redis.scard(key) == 2500
    assert 0 < await bench.redis.pttl(key) <= HERE_TTL_MS
    await bench.redis.pexpire(key, 900)
    await worker.announce_resident([], ["v1"])  # any word keeps it
    assert await bench.redis.pttl(key) > 1000
    assert await bench.redis.scard(key) == 2499


async def test_shares_hold_among_what_is_resident_here(bench: Bench) -> None:
    for vfm, weight in (("one", 1), ("three", 3)):
        await bench.serve(vfm, weight=weight)
    await bench.serve("theirs", weight=100)
    here, there = await bench.worker("here"), await bench.worker("there")
    await here.announce_resident(["one", "three"], [])
    await there.announce_resident(["theirs"], [])
    await bench.enqueue(*(job(v) for v in ("one", "three", "theirs") for _ in range(120)))
    got: Counter[str] = Counter()
    for _ in range(20):
        got.update(j.flow.vfm for j in (await ask(here, room=8)).jobs)
    assert got == {"one": pytest.approx(40, abs=4), "three": pytest.approx(120, abs=4)}


async def test_a_worker_that_sleeps_as_long_as_it_is_told_need_not_look_again_and_again(bench: Bench) -> None:
    """The loop of a worker: claim; sleep for a ring or `wait_ms`; claim again. The other one has died unnoticed."""
    await bench.serve("a")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await bench.enqueue(job("a"))
    claims = [await ask(here, steal_ms=40)]
    while not claims[-1].jobs:
        assert claims[-1].wait_ms > 0
        await asyncio.sleep(claims[-1].wait_ms / 1000)
        claims.append(await ask(here, steal_ms=40))
    assert len(claims) <= 3
