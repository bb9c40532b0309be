"""join, beat, mark, reap, leave: who is alive, and how the jobs of the dead change hands."""

from __future__ import annotations

import pytest

from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.wire.messages import INTERACTIVE, decode_reply
from tests.contract.harness import BACKBONE, Bench, answer, job
from tests.support.hosting import HOSTED
from tests.support.waiting import until_soon

STEADY = 10**6  # ms for which the judge has beaten without a gap


async def condemn(bench: Bench, victim: Consumer) -> None:
    """Condemned, but not taken over yet."""
    await bench.redis.zadd(bench.keys.leases, {victim.worker: 0}, xx=True)


# --- beat -------------------------------------------------------------------------------------------------------------


async def test_a_worker_id_is_new_for_every_incarnation(bench: Bench) -> None:
    await bench.worker("w1")
    twin = Consumer(bench.redis, bench.scripts, BACKBONE, "w1", lease_ms=1000)
    assert not (await twin.join(HOSTED)).alive


async def test_beat_renews_and_tells_server_time(bench: Bench) -> None:
    worker = await bench.worker(lease_ms=1000)
    first = (await worker.beat()).now_ms
    beat = await until_soon(lambda: later(worker, first))
    expiry = await bench.redis.zscore(bench.keys.leases, "w1")
    assert beat <= expiry <= beat + 1_100


async def later(worker: Consumer, than: int) -> int:
    now = (await worker.beat()).now_ms
    return now if now > than else 0


async def test_beat_revives_an_expired_lease(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker(lease_ms=30)
    await bench.enqueue(job())
    await until_soon(lambda: state_is(worker, "lost"))  # the lease really runs out
    assert (await worker.beat()).alive


async def state_is(worker: Consumer, state: str) -> bool:
    return (await worker.claim({INTERACTIVE: 0})).state == state


async def test_beat_never_revives_the_condemned_nor_the_absent(bench: Bench) -> None:
    worker = await bench.worker()
    await condemn(bench, worker)
    for _ in range(2):
        assert not (await worker.beat()).alive
        assert not (await worker.join(HOSTED)).alive
    stranger = Consumer(bench.redis, bench.scripts, BACKBONE, "stranger", lease_ms=1000)
    assert not (await stranger.beat()).alive
    assert await bench.redis.zscore(bench.keys.leases, "stranger") is None


# --- reap -------------------------------------------------------------------------------------------------------------


async def test_reap_waits_until_the_judge_has_been_steady_for_a_lease(bench: Bench) -> None:
    await bench.serve("a")
    judge, other = await bench.worker(), await bench.worker("w2")
    await bench.lapse(other)
    got = await judge.reap(59_999, max_attempts=3)
    assert (got.state, got.more) == ("wait", False)
    assert (await other.beat()).alive
    await bench.lapse(other)
    await bench.lapse(judge)
    assert (await judge.reap(STEADY, max_attempts=3)).state == "wait"  # the judge itself is not live
    await judge.beat()
    assert (await judge.reap(60_000, max_attempts=3)).victim == "w2"


async def test_reap_is_idle_while_all_live(bench: Bench) -> None:
    judge, _ = await bench.worker(), await bench.worker("w2")
    assert (await judge.reap(STEADY, max_attempts=3)).state == "idle"


async def test_reap_keeps_the_count_of_what_ran_and_takes_it_back_of_the_rest(bench: Bench) -> None:
    await bench.serve("a", "b")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(v, id=f"{v}{i}") for v in "ab" for i in range(3)))
    held = await bench.claimed(dead)
    assert await dead.mark([j for j in held if j.job in ("a0", "b1")])
    await bench.lapse(dead)
    rung = await bench.rings()
    got = await judge.reap(STEADY, max_attempts=3)
    assert (got.state, got.victim, got.given_back, got.dead_letters, got.more) == ("ok", "dead", 6, 0, False)
    assert await bench.rings() == rung + 1
    attempts = {j.job: j.attempts for j in await bench.claimed(judge)}
    assert attempts == {"a0": 2, "a1": 1, "a2": 1, "b0": 1, "b1": 2, "b2": 1}


async def test_a_mark_replaces_the_one_before(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="x"), job(id="y"))
    x, y = await bench.claimed(dead)
    await dead.mark([x])
    await dead.mark([y])
    await bench.lapse(dead)
    await judge.reap(STEADY, max_attempts=3)
    assert {j.job: j.attempts for j in await bench.claimed(judge)} == {"x": 1, "y": 2}


async def test_reap_past_the_maximum_makes_a_dead_letter_and_tells_all_who_wait(bench: Bench) -> None:
    await bench.serve("a")
    judge = await bench.worker()
    await bench.enqueue(job(id="poison", key="k", payload=b"bad"), inbox="one")
    await bench.enqueue(job(key="k", payload=b"bad"), inbox="two")
    for attempt in (1, 2):
        dead = await bench.worker(f"dead{attempt}")
        [held] = await bench.claimed(dead)
        assert held.attempts == attempt
        await dead.mark([held])
        await bench.lapse(dead)
        got = await judge.reap(STEADY, max_attempts=2)
        assert (got.given_back, got.dead_letters) == ((1, 0) if attempt == 1 else (0, 1))
    for inbox in ("one", "two"):
        assert [m.reply.error.code for m in await bench.mail(inbox)] == ["poisoned"]
    assert (await bench.result("poison")).error.code == "poisoned"
    [(_, letter)] = await bench.redis.xrange(f"{bench.keys.prefix}dead:a")
    assert (letter[b"j"], letter[b"d"], letter[b"flow"]) == (b"poison", b"bad", b"interactive:a")
    assert await bench.redis.pttl(f"{bench.keys.prefix}dead:a") > 0
    assert (await bench.depth(), await bench.pending(), await bench.back()) == (0, {}, [])


async def test_one_poison_job_among_sixteen(bench: Bench) -> None:
    """Redelivered jobs run alone: three deaths, fifteen answers, one dead letter."""
    await bench.serve("a")
    await bench.enqueue(*(job(payload=b"poison" if i == 5 else b"good", id=f"{i}") for i in range(16)))
    judge = await bench.worker("judge")
    for life in range(10):
        worker = await bench.worker(f"life{life}")
        jobs = await bench.claimed(worker)
        alone, together = [[j] for j in jobs if j.attempts > 1], [j for j in jobs if j.attempts == 1]
        for one_pass in [*([together] if together else []), *alone]:
            await worker.mark(one_pass)
            if any(j.payload == b"poison" for j in one_pass):
                break  # the worker dies
            await worker.settle([(j, answer()) for j in one_pass])
        await bench.lapse(worker)
        await judge.reap(STEADY, max_attempts=3)
    mail = await bench.mail()
    assert len(mail) == len({m.job for m in mail}) == 16
    assert [m.job for m in mail if m.reply.error] == ["5"]
    assert await bench.redis.xlen(f"{bench.keys.prefix}dead:a") == 1


async def test_reap_is_bounded_and_says_more(bench: Bench) -> None:
    vfms = [f"v{i}" for i in range(4)]
    await bench.serve(*vfms)
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(v) for v in vfms for _ in range(10)))
    assert len(await bench.claimed(dead)) == 40
    await bench.lapse(dead)
    steps, rung = [], await bench.rings()
    while (got := await judge.reap(STEADY, max_attempts=3, budget=7)).more:
        steps.append(got.given_back)
        assert got.victim == "dead"
        assert await bench.rings() == rung + len(steps)
    steps.append(got.given_back)
    assert max(steps) <= 7
    assert sum(steps) == 40
    assert "held:dead" not in await bench.names()
    assert len(await bench.claimed(judge)) == 40


async def test_reap_is_bounded_over_flows_without_jobs_too(bench: Bench) -> None:
    """A long-lived worker has touched every vFM of the backbone; most of them hold nothing when it dies."""
    vfms = [f"v{i}" for i in range(60)]
    await bench.serve(*vfms)
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(v) for v in vfms))
    await dead.settle([(j, answer()) for j in await bench.claimed(dead)])
    await bench.lapse(dead)
    calls = 1
    while (await judge.reap(STEADY, max_attempts=3, budget=10)).more:
        calls += 1
    assert 6 <= calls <= 8
    assert {n for n in await bench.names() if n.startswith("held")} == {"held:w1"}


@pytest.mark.parametrize("budget", [1, 2, 3])
async def test_reap_ends_whatever_the_budget(bench: Bench, budget: int) -> None:
    await bench.serve("a", "b")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job(v) for v in "ab" for _ in range(2)))
    await bench.claimed(dead)
    await bench.lapse(dead)
    for _ in range(20):
        if not (await judge.reap(STEADY, max_attempts=3, budget=budget)).more:
            break
    assert await bench.redis.zscore(bench.keys.leases, "dead") is None
    assert len(await bench.claimed(judge)) == 4


async def test_consumer_is_deleted_only_at_zero_pending(bench: Bench) -> None:
    """XGROUP DELCONSUMER drops what is pending under it: that would lose jobs."""
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job() for _ in range(5)))
    held = await bench.claimed(dead)
    await bench.lapse(dead)
    assert (await judge.reap(STEADY, max_attempts=3, budget=2)).more
    owners = [owner for owner, _ in (await bench.pending()).values()]
    assert sorted(owners) == ["dead"] * 3 + ["released"] * 2
    while (await judge.reap(STEADY, max_attempts=3, budget=2)).more:
        pass
    consumers = await bench.redis.xinfo_consumers(bench.keys.queue(held[0].flow), "w")
    assert b"dead" not in {c["name"] for c in consumers}
    assert len(await bench.pending()) == 5


async def test_reap_passes_over_entries_that_are_gone(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(), job())
    gone, ran = await bench.claimed(dead)
    await dead.mark([gone, ran])
    await bench.redis.xdel(bench.keys.queue(gone.flow), gone.entry)
    await bench.lapse(dead)
    got = await judge.reap(STEADY, max_attempts=1)
    assert (got.dead_letters, await bench.pending()) == (1, {})


async def test_the_condemned_cannot_claim_mark_or_settle_after_the_take_over(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="j"), job())
    [held] = await bench.claimed(dead, room=1)
    await bench.lapse(dead)
    await judge.reap(STEADY, max_attempts=3)
    assert (await dead.claim({INTERACTIVE: 5})).state == "lost"
    assert not await dead.mark([held])
    assert await dead.settle([(held, answer())]) == [False]
    assert await dead.send_chunks([(held, b"chunk")]) == [False]
    assert await dead.release([held]) == 0
    assert not await dead.recover([])
    assert "held:dead" not in await bench.names()
    assert (await bench.mail(), await bench.result("j")) == ([], None)
    assert len(await bench.claimed(judge)) == 2


async def test_the_condemned_cannot_claim_or_mark_while_the_take_over_goes_on(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(*(job() for _ in range(6)))
    held = await bench.claimed(dead, room=4)
    await bench.lapse(dead)
    assert (await judge.reap(STEADY, max_attempts=3, budget=2)).more
    assert (await dead.claim({INTERACTIVE: 5})).state == "lost"
    assert not await dead.mark(held)
    assert not (await dead.beat()).alive
    # What has not changed hands yet may still be answered by who ran it: one reply either way.
    assert await dead.settle([(j, answer()) for j in held]) == [False, False, True, True]
    while (await judge.reap(STEADY, max_attempts=3, budget=2)).more:
        pass
    assert len(await bench.claimed(judge)) == 4


async def test_two_judges_share_one_victim(bench: Bench) -> None:
    await bench.serve("a")
    dead, one, two = await bench.worker("dead"), await bench.worker("one"), await bench.worker("two")
    await bench.enqueue(*(job() for _ in range(9)))
    await bench.claimed(dead)
    await bench.lapse(dead)
    given = 0
    for _ in range(6):
        for judge in (one, two):
            given += (await judge.reap(STEADY, max_attempts=3, budget=2)).given_back
    assert given == 9
    assert len(await bench.claimed(one)) == 9


# --- leave ------------------------------------------------------------------------------------------------------------


async def test_leave_gives_everything_back_and_takes_the_lease_away(bench: Bench) -> None:
    await bench.serve("a")
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.enqueue(*(job() for _ in range(300)))
    held = [j for _ in range(2) for j in await bench.claimed(worker)]
    await worker.mark(held[:1])
    await worker.leave()
    assert await bench.redis.zscore(bench.keys.leases, "w1") is None
    assert "held:w1" not in await bench.names()
    assert {j.attempts for _ in range(2) for j in await bench.claimed(other)} == {1}, "nobody has died"


async def test_leave_of_who_is_gone_already_does_no_harm(bench: Bench) -> None:
    worker, other = await bench.worker(), await bench.worker("w2")
    await bench.lapse(worker)
    await other.reap(STEADY, max_attempts=3)
    await worker.leave()
    assert await bench.redis.zrange(bench.keys.leases, 0, -1) == [b"w2"]


async def test_the_error_reply_of_a_dead_letter_can_be_read(bench: Bench) -> None:
    await bench.serve("a")
    dead, judge = await bench.worker("dead"), await bench.worker()
    await bench.enqueue(job(id="j"))
    await dead.mark(await bench.claimed(dead))
    await bench.lapse(dead)
    await judge.reap(STEADY, max_attempts=1)
    reply = decode_reply(await bench.redis.get(bench.keys.result("j")))
    assert "dead letter" in str(reply.error)
