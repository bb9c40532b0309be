"""What a worker may have died of: what it ran, what it prepared, what it loaded; and nothing if it left in order."""

from __future__ import annotations

import pytest

from fmplex_broker.errors import PackageRejected
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.registry import Registry
from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE
from tests.contract.harness import Bench, answer, job

STEADY = 10**6  # ms for which the judge has beaten without a gap
MOST = 3


async def dies(bench: Bench, worker: Consumer, judge: Consumer, most: int = MOST) -> int:
    """Let a worker die, and its jobs be taken over; return how many of them were put aside."""
    await bench.lapse(worker)
    buried = 0
    while (got := await judge.reap(STEADY, max_attempts=most)).more:
        buried += got.dead_letters
    return buried + got.dead_letters


async def attempts(bench: Bench, worker: Consumer) -> dict[str, int]:
    return {j.job: j.attempts for j in await bench.claimed(worker, interactive=256, offline=256)}


# --- preparation ------------------------------------------------------------------------------------------------------


async def test_what_a_claim_has_brought_is_suspect_until_it_is_prepared(bench: Bench) -> None:
    await bench.serve("a", "b")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job("a", id="a"), job("b", id="b", cls=OFFLINE))
    assert len(await bench.claimed(dead, interactive=9, offline=9)) == 2
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"a": 2, "b": 2}


async def test_a_mark_says_that_it_is_prepared(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(id=f"{i}") for i in range(3)))
    held = await bench.claimed(dead)
    await dead.mark(held[:1])
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"0": 2, "1": 1, "2": 1}


async def test_a_mark_while_it_is_being_prepared_leaves_it_suspect(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="old"))
    old = await bench.claimed(dead)
    await dead.mark(old)
    await bench.enqueue(job(id="new"))
    await bench.claimed(dead)
    await dead.mark(old, preparing=True)
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"old": 2, "new": 2}


async def test_a_mark_that_a_claim_overtakes_leaves_what_that_brings_suspect(bench: Bench) -> None:
    """Both are on their way; the worker knows of the claim before it only."""
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="old"))
    await bench.claimed(dead)
    before = dead._answered
    await bench.enqueue(job(id="new"))
    await bench.claimed(dead)
    dead._answered = before
    await dead.mark([])
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"old": 1, "new": 2}


async def test_what_takes_long_to_prepare_stays_suspect_over_later_claims(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(id=f"{i}") for i in range(3)))
    slow, _ = await bench.claimed(dead, room=2)
    claim = await dead.claim({INTERACTIVE: 1}, preparing=[slow])
    assert [j.job for j in claim.jobs] == ["2"]
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"0": 2, "1": 1, "2": 2}


async def test_a_redelivered_job_is_no_suspect_before_its_turn(bench: Bench) -> None:
    """It waits while another one is prepared, and must not be blamed for what that one does."""
    await bench.serve("a")
    judge = await bench.worker()
    await bench.enqueue(*(job(id=f"{i}") for i in range(5)), job(id="poison"))
    dead = await bench.worker("dead0")
    await bench.claimed(dead)
    assert await dies(bench, dead, judge) == 0
    for life in (1, 2):
        dead = await bench.worker(f"dead{life}")
        held = {j.job: j for j in await bench.claimed(dead)}
        await dead.mark([held["poison"]])
        assert await dies(bench, dead, judge) == life - 1
    assert await attempts(bench, judge) == {f"{i}": 2 for i in range(5)}
    assert [m.job for m in await bench.mail() if m.reply.error] == ["poison"]


async def test_one_poison_job_in_preparation_among_many(bench: Bench) -> None:
    """As workers do it: those that come first together, redelivered ones one at a time."""
    await bench.serve("a", "b")
    await bench.enqueue(*(job("ab"[i % 2], b"poison" if i == 7 else b"good", id=f"{i}") for i in range(40)))
    judge = await bench.worker("judge")
    deaths = 0
    for life in range(12):
        worker = await bench.worker(f"life{life}")
        jobs = await bench.claimed(worker)
        together, alone = [j for j in jobs if j.attempts == 1], [[j] for j in jobs if j.attempts > 1]
        died = False
        for batch in [*([together] if together else []), *alone]:
            if batch[0].attempts > 1:
                await worker.mark(batch)
            if died := any(j.payload == b"poison" for j in batch):
                break
            await worker.settle([(j, answer()) for j in batch])
        deaths += died
        await dies(bench, worker, judge)
    mail = await bench.mail()
    assert len(mail) == len({m.job for m in mail}) == 40
    assert [m.job for m in mail if m.reply.error] == ["7"]
    assert deaths == MOST


async def test_what_was_settled_or_given_back_meanwhile_is_nobodys_fault(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(id=f"{i}") for i in range(3)))
    done, back, held = await bench.claimed(dead)
    await dead.settle([(done, answer())])
    await dead.release([back])
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {back.job: 1, held.job: 2}


async def test_an_empty_claim_leaves_nobody_suspect_who_was_prepared(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="ready"))
    await bench.claimed(dead)
    assert await bench.claimed(dead) == []
    await dies(bench, dead, judge)
    assert await attempts(bench, judge) == {"ready": 1}


# --- orderly ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drains", [1, 4, 7])
async def test_orderly_drains_are_no_deaths(bench: Bench, drains: int) -> None:
    """Its pass, or its preparation, took longer than a drain may, each time."""
    await bench.serve("a", "b")
    judge = await bench.worker("judge")
    await bench.enqueue(job("a", id="runs"), job("b", id="prepares"))
    for life in range(drains):
        worker = await bench.worker(f"life{life}")
        held = {j.job: j for j in await bench.claimed(worker)}
        assert {j.attempts for j in held.values()} == {1}
        await worker.mark(held.values())
        await worker.leave()
    dead = await bench.worker("dead")
    await dead.mark(await bench.claimed(dead))
    assert await dies(bench, dead, judge) == 0
    assert await attempts(bench, judge) == {"runs": 2, "prepares": 2}
    assert await bench.mail() == []


async def test_who_does_not_come_to_the_end_of_leaving_has_not_died_either(bench: Bench) -> None:
    """Its connection is cut in the middle of it, and another worker takes over the rest."""
    await bench.serve("a")
    worker, judge = await bench.worker("w"), await bench.worker("judge")
    await bench.enqueue(*(job() for _ in range(6)))
    await worker.mark(await bench.claimed(worker), preparing=True)
    await worker.loading("a", "v2", "begin")
    assert (await worker.reap(0, max_attempts=MOST, budget=2, victim="w")).more
    while (await judge.reap(STEADY, max_attempts=MOST, budget=2)).more:
        pass
    assert {j.attempts for j in await bench.claimed(judge)} == {1}
    assert await died(judge, "a", "v2") == 0


async def test_a_drain_between_deaths_takes_none_of_them_back(bench: Bench) -> None:
    await bench.serve("a")
    judge = await bench.worker("judge")
    await bench.enqueue(job(id="poison"))
    for life, ends in enumerate(("dies", "leaves", "dies", "leaves", "dies")):
        worker = await bench.worker(f"life{life}")
        held = await bench.claimed(worker)
        assert held[0].attempts == 1 + (life + 1) // 2
        await worker.mark(held)
        if ends == "leaves":
            await worker.leave()
        else:
            assert await dies(bench, worker, judge) == (life == 4)


async def test_a_version_is_not_blamed_for_an_orderly_end(bench: Bench) -> None:
    await bench.serve("a")
    for life in range(4):
        worker = await bench.worker(f"life{life}")
        assert await worker.loading("a", "v2", "begin") == (0, "")
        await worker.leave()


# --- versions ---------------------------------------------------------------------------------------------------------


async def died(worker: Consumer, vfm: str, version: str) -> int:
    return (await worker.loading(vfm, version, "end"))[0]


async def offer(bench: Bench, vfm: str, version: str) -> None:
    raw = await bench.redis.hget(bench.keys.vfms, vfm)
    generation = int(raw.split(b"generation=")[1].split(b"|")[0])
    state, _ = await bench.scripts("propose", bench.keys.vfms, [vfm, version, "{}", generation, 9, 1, 0, 0])
    assert state == b"ok"


async def test_deaths_are_counted_against_the_versions_that_were_being_loaded(bench: Bench) -> None:
    await bench.serve("a", "b", "c")
    judge = await bench.worker("judge")
    for deaths in range(4):
        worker = await bench.worker(f"life{deaths}")
        assert await worker.loading("b", "w1", "begin") == (0, "")
        assert await worker.loading("b", "w1", "end", [("c", "w1")]) == (0, ""), "it was through"
        assert await worker.loading("a", "v2", "begin", [("c", "w1")]) == (deaths, "")
        await dies(bench, worker, judge)
    assert [await died(judge, *of) for of in (("a", "v2"), ("c", "w1"))] == [4, 4]
    assert [await died(judge, *of) for of in (("a", "v1"), ("b", "w1"), ("b", "v2"))] == [0, 0, 0]


async def test_the_dead_count_before_anybody_has_taken_over_from_them(bench: Bench) -> None:
    """Each worker dies as it starts: none lives for the lease that it takes to judge others."""
    await bench.serve("a")
    await offer(bench, "a", "v2")
    for deaths in range(3):
        worker = await bench.worker(f"life{deaths}")
        assert await worker.loading("a", "v2", "begin") == (deaths, "")
        await bench.lapse(worker)
    judge = await bench.worker("judge")
    while (await judge.reap(STEADY, max_attempts=MOST)).state == "ok":
        pass
    assert await died(judge, "a", "v2") == 3, "each once"


async def test_an_offer_is_to_blame_and_not_the_jobs_beside_it(bench: Bench) -> None:
    """It counts once, however many calls the take-over takes."""
    await bench.serve("a", "b")
    await offer(bench, "a", "v2")
    judge = await bench.worker()
    await bench.enqueue(*(job("ab"[i % 2], id=f"{i}") for i in range(9)))
    for deaths in range(1, 5):
        dead = await bench.worker(f"dead{deaths}")
        held = await bench.claimed(dead)
        assert {j.attempts for j in held} == {1}
        await dead.mark(held[:3], preparing=True)
        await dead.loading("a", "v2", "begin", [("b", "v1")])
        await bench.lapse(dead)
        while (await judge.reap(STEADY, max_attempts=MOST, budget=2)).more:
            pass
        assert (await died(judge, "a", "v2"), await died(judge, "b", "v1")) == (deaths, 0)
    assert set((await attempts(bench, judge)).values()) == {1}


async def test_what_others_have_loaded_is_not_to_blame_beside_jobs(bench: Bench) -> None:
    await bench.serve("a", "b")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job("a", id="new"), job("b", id="done"))
    held = {j.job: j for j in await bench.claimed(dead)}
    await dead.loading("b", "v1", "begin")
    await dead.settle([(held["done"], answer())])
    await dies(bench, dead, judge)
    assert await died(judge, "b", "v1") == 0
    assert await attempts(bench, judge) == {"new": 2}


@pytest.mark.parametrize("marked", ["run", "claimed"])
async def test_it_is_where_no_job_can_be(bench: Bench, marked: str) -> None:
    """What is marked still has been answered long since; and what waits for the version is not being prepared."""
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="done"), job(id="waits"))
    done, waits = await bench.claimed(dead)
    if marked == "run":
        await dead.mark([done])
    else:
        await dead.claim({INTERACTIVE: 1}, preparing=[done])
    await dead.settle([(done, answer())])
    await dead.loading("a", "v1", "begin")
    await dies(bench, dead, judge)
    assert await died(judge, "a", "v1") == 1
    assert await attempts(bench, judge) == {waits.job: 1}


async def test_an_offer_is_tried_by_one_worker_at_a_time_until_one_has_accepted_it(bench: Bench) -> None:
    one, two, three = [await bench.worker(name) for name in ("one", "two", "three")]
    await bench.serve("a")
    await offer(bench, "a", "v2")
    assert await one.loading("a", "v2", "begin") == (0, "")
    assert await two.loading("a", "v2", "begin") == await three.loading("a", "v2", "begin") == (0, one.worker)
    await bench.lapse(one)
    assert await two.loading("a", "v2", "begin") == (1, "")
    assert await three.loading("a", "v2", "begin") == (1, two.worker)
    await two.loading("a", "v2", "end")
    assert await three.loading("a", "v2", "begin") == (1, "")
    assert await two.loading("a", "v2", "begin") == (1, three.worker)
    await Registry(bench.redis, bench.scripts).vote("minilm", "a", "v2", "three")
    assert not (await two.loading("a", "v2", "begin"))[1]


async def test_who_has_waited_for_long_enough_insists(bench: Bench) -> None:
    one, two = await bench.worker("one"), await bench.worker("two")
    await bench.serve("a")
    await offer(bench, "a", "v2")
    await one.loading("a", "v2", "begin")
    assert await two.loading("a", "v2", "insist") == (0, "")


async def test_what_is_on_offer_no_longer_is_not_tried(bench: Bench) -> None:
    """A worker that has read the offers before the last one died of this one, and comes to it after that."""
    one, two, three = [await bench.worker(name) for name in ("one", "two", "three")]
    await bench.serve("a")
    await offer(bench, "a", "v2")
    assert await one.loading("a", "v2", "try") == (0, "")
    assert await two.loading("a", "v2", "try") == (0, one.worker)
    await Registry(bench.redis, bench.scripts).vote("minilm", "a", "v2", "three", PackageRejected("workers die of it"))
    for does in ("try", "insist"):
        assert await two.loading("a", "v2", does) == (-1, "")
    assert await three.loading("a", "v1", "begin") == (0, ""), "what its jobs need is loaded all the same"


async def test_what_serves_is_loaded_by_all_at_once(bench: Bench) -> None:
    one, two = await bench.worker("one"), await bench.worker("two")
    await bench.serve("a")
    await offer(bench, "a", "v2")
    for version in ("v1", "v0"):
        assert await one.loading("a", version, "begin") == (0, "")
        assert await two.loading("a", version, "begin") == (0, "")


async def test_a_condemned_worker_says_nothing(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker("judge")
    await dies(bench, dead, judge)
    assert await dead.loading("a", "v2", "begin") == (0, "")
    assert "held:dead" not in await bench.names()


async def test_deaths_of_long_ago_are_forgotten(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    now = (await worker.beat()).now_ms
    await bench.redis.hset(bench.keys.vfms, "a:deaths", f"v2|9|{now - 590_000}")
    assert await died(worker, "a", "v2") == 9
    await bench.redis.hset(bench.keys.vfms, "a:deaths", f"v2|9|{now - 610_000}")
    assert await died(worker, "a", "v2") == 0


@pytest.mark.parametrize("verdict", ["accepted", "refused", "removed", "offered again"])
async def test_a_verdict_ends_the_count(bench: Bench, verdict: str) -> None:
    await bench.serve("a")
    registry = Registry(bench.redis, bench.scripts)
    dead, judge = await bench.worker("dead"), await bench.worker("judge")
    await offer(bench, "a", "v2")
    await dead.loading("a", "v2", "begin")
    await dies(bench, dead, judge)
    assert await died(judge, "a", "v2") == 1
    if verdict == "accepted":
        assert await registry.vote("minilm", "a", "v2", "judge") == "serving"
    elif verdict == "refused":
        assert await registry.vote("minilm", "a", "v2", "judge", PackageRejected("1 worker died")) == "rejected"
    elif verdict == "removed":
        await registry.remove("a", drain_s=0)
    else:
        await offer(bench, "a", "v2")
    assert await died(judge, "a", "v2") == 0
    assert await bench.redis.hget(bench.keys.vfms, "a:deaths") is None


async def test_a_vfm_that_was_removed_leaves_nothing_behind(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker("judge")
    await dead.loading("a", "v2", "begin")
    await Registry(bench.redis, bench.scripts).remove("a", drain_s=0)
    await dies(bench, dead, judge)
    assert await bench.redis.hget(bench.keys.vfms, "a:deaths") is None
