"""claim in order of arrival: the oldest jobs over all ready flows, whatever the weights; nothing else is different."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from fmplex_broker.streams.claims import Claim, Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.producer import NewJob
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from tests.contract.harness import Bench, answer, job
from tests.support.waiting import until_soon

WEIGHTS = {"light": 1, "middle": 10, "heavy": 100}


async def now_ms(bench: Bench) -> int:
    seconds, us = await bench.redis.time()
    return int(seconds) * 1000 + int(us) // 1000


async def arrive(bench: Bench, *jobs: NewJob) -> list[str]:
    """One after the other, none within one ms of another: that has no order across flows."""
    for new in jobs:
        before = await now_ms(bench)
        await until_soon(lambda before=before: _later(bench, before))
        assert await bench.enqueue(new) == ["new"]
    return [new.job for new in jobs]


async def _later(bench: Bench, than: int) -> bool:
    return await now_ms(bench) > than


async def oldest(worker: Consumer, room: int, per_flow: int = 256, **classes: int) -> Claim:
    claim = await worker.claim(classes or {INTERACTIVE: room}, per_flow, order="arrival")
    assert claim.state == "ok"
    return claim


def names(claim: Claim) -> list[str]:
    return [j.job for j in claim.jobs]


# --- order ------------------------------------------------------------------------------------------------------------


async def test_jobs_come_as_they_were_sent_whatever_the_weights(bench: Bench) -> None:
    for vfm, weight in WEIGHTS.items():
        await bench.serve(vfm, weight=weight)
    rng, worker = random.Random(3), await bench.worker()
    sent = await arrive(bench, *(job(rng.choice(list(WEIGHTS)), units=rng.randint(1, 50)) for _ in range(60)))
    got: list[str] = []
    while len(got) < len(sent):
        claim = await oldest(worker, rng.randint(1, 7))
        assert claim.jobs
        await worker.settle([(j, answer()) for j in claim.jobs[::2]])  # some of them still pending at the next claim
        got += names(claim)
    assert got == sent
    assert await bench.ready() == {}


async def test_a_backlog_is_served_before_whoever_comes_after_it(bench: Bench) -> None:
    await bench.serve("a", weight=1)
    await bench.serve("b", weight=100)
    worker = await bench.worker()
    await bench.enqueue(*(job("a", units=100) for _ in range(100)))
    await arrive(bench, job("b"))
    vfms = [j.flow.vfm for _ in range(8) for j in (await oldest(worker, 13)).jobs]
    assert vfms == ["a"] * 100 + ["b"]


async def test_what_came_within_one_ms_is_taken_in_turns(real: Bench) -> None:
    await real.serve("a", "b")
    await real.enqueue(*(job("a") for _ in range(20)), *(job("b") for _ in range(20)))  # one call: one ms
    claim = await oldest(await real.worker(), 10)
    assert Counter(j.flow.vfm for j in claim.jobs) == {"a": 5, "b": 5}


async def test_each_class_has_its_own_room_and_all_are_listed_by_arrival(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    sent = await arrive(bench, *(job("ab"[i % 2], cls=(INTERACTIVE, OFFLINE)[i % 3 == 0]) for i in range(12)))
    assert names(await oldest(worker, 0, interactive=4, offline=2)) == [sent[i] for i in (0, 1, 2, 3, 4, 5)]
    assert names(await oldest(worker, 0, interactive=2)) == [sent[7], sent[8]]
    assert names(await oldest(worker, 0, interactive=9, offline=9)) == [sent[i] for i in (6, 9, 10, 11)]


@pytest.mark.parametrize("seed", range(4))
async def test_always_the_oldest_at_random(bench: Bench, seed: int) -> None:
    """Against a list of what waits, sorted: bursts, cancellations, small and large rooms, a bound a flow, lost groups."""
    rng, worker, producer = random.Random(seed), await bench.worker(), bench.producer()
    flows = [Flow(f"v{i}", INTERACTIVE) for i in range(6)]
    await bench.serve(*(f.vfm for f in flows))
    waiting: dict[str, NewJob] = {}
    for _ in range(60):
        for _ in range(rng.randint(0, 3)):
            burst = [job(rng.choice(flows).vfm, units=rng.randint(1, 9)) for _ in range(rng.choice([1, 1, 2, 8]))]
            await bench.enqueue(*burst)
            waiting |= {new.job: new for new in burst}
        if waiting and rng.random() < 0.3:
            gone = rng.sample(list(waiting.values()), min(len(waiting), rng.choice([1, 5])))
            await producer.cancel([(new.flow, new.job, new.idem) for new in gone])
            waiting = {name: new for name, new in waiting.items() if new not in gone}
        room, per_flow = rng.choice([1, 3, 10, 40]), rng.choice([2, 256])
        expected = await expectation(bench, flows, waiting, room, per_flow)
        claim = await oldest(worker, room, per_flow)
        assert [j.arrival for j in claim.jobs] == expected
        assert all(waiting.pop(j.job).flow == j.flow for j in claim.jobs)
        await worker.settle([(j, answer()) for j in claim.jobs])
        if rng.random() < 0.1:
            await destroy_group(bench, rng.choice(flows))


async def expectation(
    bench: Bench, flows: list[Flow], waiting: dict[str, NewJob], room: int, per_flow: int
) -> list[tuple[int, int]]:
    """When the jobs were added that are the next to be taken."""
    line: list[tuple[int, int]] = []
    for flow in flows:
        entries = await bench.redis.xrange(bench.keys.queue(flow))
        ids = [entry.decode().split("-") for entry, fields in entries if fields[b"j"].decode() in waiting]
        line += [(int(ms), int(number)) for ms, number in ids[:per_flow]]
    return sorted(line)[:room]


async def destroy_group(bench: Bench, flow: Flow) -> None:
    if await bench.redis.exists(bench.keys.queue(flow)):
        await bench.redis.xgroup_destroy(bench.keys.queue(flow), "w")


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_per_flow_room(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    a = await arrive(bench, *(job("a") for _ in range(5)))
    b = await arrive(bench, *(job("b") for _ in range(2)))
    claim = await oldest(worker, 100, per_flow=3)
    assert (names(claim), claim.more) == (a[:3] + b, True)
    claim = await oldest(worker, 100, per_flow=3)
    assert (names(claim), claim.more, claim.rest) == (a[3:], False, {Flow("a", INTERACTIVE): False})


async def test_more_flows_than_a_call_looks_at(bench: Bench) -> None:
    """Order is no longer exact, but work a call is bounded, nothing is left out, and it says when to ask again."""
    vfms = [f"v{i}" for i in range(300)]
    await bench.serve(*vfms)
    await bench.enqueue(*(job(v) for v in vfms for _ in range(2)))
    worker = await bench.worker()
    seen: Counter[str] = Counter()
    for _ in range(40):
        claim = await oldest(worker, 256)
        assert len({j.flow for j in claim.jobs}) <= 64
        seen.update(j.flow.vfm for j in claim.jobs)
        if not claim.more:
            break
    assert seen == Counter(dict.fromkeys(vfms, 2))
    assert await bench.ready() == {}


async def test_order_is_exact_while_a_call_looks_at_all(bench: Bench) -> None:
    """Also when it may not read from all of them: then it ends early."""
    vfms = [f"v{i:02}" for i in range(90)]
    await bench.serve(*vfms)
    worker, rng = await bench.worker(), random.Random(1)
    rng.shuffle(vfms)
    sent = await arrive(bench, *(job(v) for v in vfms))
    first = await oldest(worker, 256)
    assert (names(first), first.more) == (sent[:64], True)
    assert names(await oldest(worker, 256)) == sent[64:]


# --- what else may be the matter with a flow --------------------------------------------------------------------------


async def test_cancelled_jobs_are_passed_over_and_emptied_flows_leave(bench: Bench) -> None:
    await bench.serve("a", "b", "gone")
    worker, producer = await bench.worker(), bench.producer()
    jobs = [job(vfm) for vfm in ("gone", "a", "b", "a", "a", "b", "gone", "a")]
    sent = await arrive(bench, *jobs)
    await producer.cancel([(jobs[i].flow, jobs[i].job, jobs[i].idem) for i in (0, 3, 5, 6)])
    assert names(await oldest(worker, 2)) == [sent[1], sent[2]]
    assert set(await bench.ready()) == {"a"}
    claim = await oldest(worker, 9)
    assert (names(claim), claim.more) == ([sent[4], sent[7]], False)


async def test_many_given_back_jobs_do_not_spoil_the_order_of_the_others(bench: Bench) -> None:
    """They use up what a call may visit, not what it may look at."""
    vfms = [f"v{i:02}" for i in range(60)]
    await bench.serve(*vfms)
    worker = await bench.worker()
    await bench.enqueue(*(job(v) for v in vfms))
    await worker.release((await oldest(worker, 60)).jobs)
    sent = await arrive(bench, *(job(v) for v in reversed(vfms)))
    got = names(await oldest(worker, 62))
    assert [name for name in got if name in sent] == sent[:2]


async def test_given_back_jobs_come_first(bench: Bench) -> None:
    await bench.serve("a", "b")
    dead, worker = await bench.worker("dead"), await bench.worker()
    sent = await arrive(bench, *(job("ab"[i % 2]) for i in range(6)))
    await bench.claimed(dead, 1)  # as a worker with another order does
    taken = names(await oldest(dead, 2))
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=3)
    assert names(await oldest(worker, 3)) == sent[:3]
    assert set(taken) < set(sent[:3])
    assert names(await oldest(worker, 9)) == sent[3:]


async def test_a_lost_group_is_made_again_and_nothing_is_lost(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    sent = await arrive(bench, *(job("ab"[i % 2]) for i in range(8)))
    assert names(await oldest(worker, 4)) == sent[:4]
    await destroy_group(bench, Flow("a", INTERACTIVE))
    # What the group of `a` had forgotten is delivered again, in its place: before what is newer.
    assert names(await oldest(worker, 3)) == [sent[0], sent[2], sent[4]]
    assert names(await oldest(worker, 9)) == sent[5:]


async def test_a_stream_that_is_none_stops_nobody(bench: Bench) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    sent = await arrive(bench, job("a"), job("b"))
    await bench.redis.delete(bench.keys.queue(Flow("a", INTERACTIVE)))
    assert names(await oldest(worker, 9)) == sent[1:]
    assert await bench.ready() == {}


async def test_what_is_resident_elsewhere_is_left_there(bench: Bench) -> None:
    await bench.serve("a", "b", "c")
    here, there = await bench.worker("here"), await bench.worker("there")
    await there.announce_resident(["a"], [])
    await here.announce_resident(["b"], [])
    sent = await arrive(bench, job("a"), job("c"), job("b"))
    asked = {INTERACTIVE: 9}
    claim = await here.claim(asked, order="arrival", steal_ms=60_000, strangers=False)
    assert names(claim) == sent[2:]
    claim = await here.claim(asked, order="arrival", steal_ms=60_000)
    assert names(claim) == sent[1:2]
    assert 0 < claim.wait_ms <= 60_000
    assert names(await here.claim(asked, order="arrival")) == sent[:1]


# --- beside and after it ----------------------------------------------------------------------------------------------


async def test_virtual_time_goes_on_so_fair_order_can_follow(bench: Bench) -> None:
    await bench.serve("one", weight=1)
    await bench.serve("three", weight=3)
    worker = await bench.worker()
    for _ in range(40):
        await arrive(bench, job("one", units=2), job("three", units=2))
    assert len((await oldest(worker, 60)).jobs) == 60
    assert await bench.ready() == {"one": pytest.approx(60), "three": pytest.approx(20)}
    await bench.enqueue(*(job(vfm, units=2) for vfm in ("one", "three") for _ in range(100)))
    fair: Counter[str] = Counter()
    for _ in range(20):
        fair.update(j.flow.vfm for j in await bench.claimed(worker, 5))
    # `three` makes up for what it had too little of (60 jobs); the other 40 are in proportion.
    assert fair == {"one": pytest.approx(10, abs=2), "three": pytest.approx(90, abs=2)}


async def test_both_orders_on_one_backbone_lose_nothing(bench: Bench) -> None:
    await bench.serve(*WEIGHTS)
    await bench.enqueue(*(job(vfm) for vfm in WEIGHTS for _ in range(60)))
    workers = [await bench.worker(f"w{i}") for i in range(4)]
    seen: list[Claimed] = []
    for turn in range(60):
        claim = await workers[turn % 4].claim({INTERACTIVE: 4}, order=("fair", "arrival")[turn % 2])
        if turn % 7 == 0:
            await workers[turn % 4].release(claim.jobs)
        else:
            seen += claim.jobs
    assert Counter(Counter(j.job for j in seen).values()) == {1: 180}
    assert (await bench.ready(), await bench.back()) == ({}, [])
