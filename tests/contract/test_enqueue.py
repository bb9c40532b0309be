"""enqueue: vFM serving? idempotency, cap, rate; then add, mark the flow ready, wake."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fmplex_broker.wire.messages import INTERACTIVE, OFFLINE, Flow
from tests.contract.harness import Bench, answer, job

LARGE = b"x" * (64 * 1024 + 1)


async def test_new_job_is_queued_with_what_the_broker_must_read(bench: Bench) -> None:
    await bench.serve("a", digest="v7")
    worker = await bench.worker()
    sent = job(payload=b"payload", units=5, timeout_ms=9_000)
    before = (await worker.beat()).now_ms
    assert await bench.enqueue(sent) == ["new"]
    [got] = await bench.claimed(worker)
    assert (got.flow, got.job, got.inbox, got.version) == (Flow("a", INTERACTIVE), sent.job, "client", "v7")
    assert (got.units, got.payload, got.attempts) == (5, b"payload", 1)
    assert before <= got.enqueued_ms <= before + 5_000
    assert 9_000 <= got.deadline_ms - before <= 14_000


async def test_serving_digest_is_stamped_into_the_job(bench: Bench) -> None:
    await bench.serve("a", digest="v1")
    worker = await bench.worker()
    await bench.enqueue(job(id="old"))
    await bench.scripts("propose", bench.keys.vfms, ["a", "v2", "{}", 2, 100, 1.0, 0, 0])
    await bench.scripts("vote", bench.keys.vfms, ["a", "v2", "w1", ""])
    await bench.enqueue(job(id="new"))
    assert {j.job: j.version for j in await bench.claimed(worker)} == {"old": "v1", "new": "v2"}


async def test_empty_payload_travels(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(payload=b""))
    assert [j.payload for j in await bench.claimed(worker)] == [b""]


async def test_many_at_once_keep_their_order(bench: Bench) -> None:
    await bench.serve("a", "b")
    jobs = [job("ab"[i % 2], id=f"{i:03}") for i in range(150)]
    got = await bench.producer().enqueue(jobs)
    assert [g.job for g in got] == [j.job for j in jobs]
    claimed = await bench.claimed(await bench.worker())
    assert [j.job for j in claimed if j.flow.vfm == "a"] == [j.job for j in jobs if j.flow.vfm == "a"]


async def test_unknown_vfm(bench: Bench) -> None:
    assert await bench.enqueue(job("nobody")) == ["unknown"]
    assert await bench.names() == set()


async def test_closed_until_a_version_is_accepted_and_from_retirement_on(bench: Bench) -> None:
    worker = await bench.worker()
    await bench.scripts("propose", bench.keys.vfms, ["a", "v1", "{}", -1, 100, 1.0, 0, 0])
    assert await bench.enqueue(job()) == ["closed"]
    await bench.scripts("vote", bench.keys.vfms, ["a", "v1", worker.worker, ""])
    assert await bench.enqueue(job()) == ["new"]
    await bench.scripts("retire", bench.keys.vfms, ["a", "drain", 10, b""])
    assert await bench.enqueue(job()) == ["closed"]


async def test_full_at_the_cap_and_free_again_after_settle(bench: Bench) -> None:
    await bench.serve("a", cap=3)
    worker = await bench.worker()
    assert await bench.enqueue(*(job() for _ in range(5))) == ["new"] * 3 + ["full"] * 2
    jobs = await bench.claimed(worker)
    assert await bench.enqueue(job()) == ["full"]  # running jobs count
    await worker.settle([(jobs[0], answer())])
    assert await bench.enqueue(job(), job()) == ["new", "full"]


async def test_full_queue_still_knows_its_jobs(bench: Bench) -> None:
    await bench.serve("a", cap=1)
    first = job()
    assert await bench.enqueue(first) == ["new"]
    assert await bench.enqueue(first) == ["dup"]


async def test_cap_counts_each_class_by_itself(bench: Bench) -> None:
    await bench.serve("a", cap=1)
    assert await bench.enqueue(job(), job(cls=OFFLINE)) == ["new", "new"]


async def test_limited_by_rate_says_when_to_come_back(bench: Bench) -> None:
    await bench.serve("a", rate=1000)
    assert await bench.enqueue(job(units=1000)) == ["new"]
    [got] = await bench.producer().enqueue([job(units=200)])
    assert got.status == "limited"
    assert 100 <= got.wait_ms <= 200
    await asyncio.sleep(got.wait_ms / 1000)  # the promise under test
    assert await bench.enqueue(job(units=200)) == ["new"]


async def test_rate_lets_a_full_bucket_pay_for_one_larger_job(bench: Bench) -> None:
    await bench.serve("a", rate=10)
    assert await bench.enqueue(job(units=50)) == ["new"]
    [got] = await bench.producer().enqueue([job(units=1)])
    assert got.status == "limited"
    assert 3_900 <= got.wait_ms <= 4_200  # 40 units of debt and one of its own


async def test_what_is_charged_may_differ_from_the_units(bench: Bench) -> None:
    """A call of many jobs pays on its first: it is taken or refused as a whole."""
    await bench.serve("a", rate=10)
    call = [replace(job(units=4), charge=charge) for charge in (12, 0, 0)]
    assert await bench.enqueue(*call) == ["new"] * 3
    assert await bench.enqueue(*(replace(j, job=j.job + "again") for j in call)) == ["limited", "new", "new"]
    assert [j.units for j in await bench.claimed(await bench.worker())] == [4] * 5


async def test_refused_jobs_leave_nothing_behind(bench: Bench) -> None:
    await bench.serve("full", cap=1)
    await bench.serve("slow", rate=1)
    await bench.enqueue(job("full"), job("slow"))
    before = await bench.names()
    got = await bench.enqueue(job("full", LARGE), job("slow", LARGE), job("none", LARGE))
    assert got == ["full", "limited", "unknown"]
    assert await bench.names() == before


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_resend_after_a_lost_reply_adds_nothing_and_gives_one_reply(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    jobs = [job() for _ in range(3)]
    assert await bench.enqueue(*jobs) == ["new"] * 3
    assert await bench.enqueue(*jobs) == ["dup"] * 3
    assert await bench.depth() == 3
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    assert await bench.enqueue(*jobs) == ["done"] * 3
    assert sorted(m.job for m in await bench.mail()) == sorted(j.job for j in jobs)
    assert await bench.claimed(worker) == []


async def test_dup_names_the_first_job_and_its_inbox_gets_the_reply_too(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first, second, third = (job(key="k") for _ in range(3))
    await bench.enqueue(first, inbox="one")
    for inbox, again in (("two", second), ("three", third), ("two", second)):
        [got] = await bench.producer(inbox).enqueue([again])
        assert (got.status, got.job) == ("dup", first.job)
    [running] = await bench.claimed(worker)
    [got] = await bench.producer("four").enqueue([job(key="k")])  # while it runs
    assert got.status == "dup"
    await worker.settle([(running, answer(42))])
    for inbox in ("one", "two", "three", "four"):
        assert [(m.job, m.reply.output) for m in await bench.mail(inbox)] == [(first.job, 42)]


async def test_done_while_the_result_lives(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first = job(key="k")
    await bench.enqueue(first)
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    [got] = await bench.producer("other").enqueue([job(key="k")])
    assert (got.status, got.job) == ("done", first.job)
    assert await bench.result(got.job) is not None


async def test_taken_as_new_when_result_and_entry_are_gone(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first = job(key="k")
    await bench.enqueue(first)
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    await bench.redis.delete(bench.keys.result(first.job))  # as its TTL does
    second = job(key="k")
    [got] = await bench.producer().enqueue([second])
    assert (got.status, got.job) == ("new", second.job)


@pytest.mark.parametrize("other", [job(key="k", payload=b"else"), job("b", key="k"), job(key="k", cls=OFFLINE)])
async def test_conflict_when_the_key_was_used_for_another_request(bench: Bench, other) -> None:
    await bench.serve("a", "b")
    await bench.enqueue(job(key="k"))
    assert await bench.enqueue(other) == ["conflict"]
    assert await bench.depth("b") == await bench.depth(cls=OFFLINE) == 0


async def test_a_repeat_without_inbox_makes_none(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(key="k"), inbox="one")
    assert await bench.enqueue(job(key="k"), inbox="") == ["dup"]
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    assert await bench.mail("") == []


async def test_idempotency_outlives_queue_wait_and_result(bench: Bench) -> None:
    await bench.serve("a")
    await bench.enqueue(job(key="k", timeout_ms=50_000))
    assert await bench.redis.pttl(bench.keys.prefix + "idem:k") > 50_000 + 60_000 - 1_000


# --- ready and wake ---------------------------------------------------------------------------------------------------


async def test_a_newly_ready_flow_rings_once(bench: Bench) -> None:
    await bench.serve("a", "b")
    await bench.enqueue(job("a"), job("a"), job("b"))
    assert await bench.rings() == 1  # a bell, not a counter
    await bench.enqueue(job("a"))
    assert await bench.rings() == 1
    assert set(await bench.ready()) == {"a", "b"}


async def test_a_flow_read_to_its_end_is_not_ready_so_its_next_job_rings(bench: Bench) -> None:
    """Even when the claim took exactly as many as there were: else an idle worker sleeps beside a waiting job."""
    await bench.serve("a")
    busy = await bench.worker()
    await bench.enqueue(job(), job())
    assert len(await bench.claimed(busy, room=2)) == 2
    assert await bench.ready() == {}
    rung = await bench.rings()
    await bench.enqueue(job())
    assert await bench.rings() == rung + 1


async def test_wake_is_capped(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    for _ in range(300):
        await bench.enqueue(job())
        await bench.claimed(worker)
    assert await bench.rings() <= 256


# --- large payloads ---------------------------------------------------------------------------------------------------


async def test_large_payload_travels_by_key_both_ways(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    sent = job(payload=LARGE)
    await bench.enqueue(sent, job(payload=LARGE[:-1]))
    assert "blob:" + sent.job in await bench.names()
    large, small = await bench.claimed(worker)
    assert (large.payload, small.payload) == (LARGE, LARGE[:-1])
    raw = (await bench.redis.xrange(bench.keys.queue(sent.flow)))[0][1]
    assert len(b"".join(raw.values())) < 1000
    await worker.settle([(large, answer("y" * len(LARGE))), (small, answer("small"))])
    by_key, whole = await bench.mail()
    assert (by_key.body, whole.reply.output) == (b"", "small")
    assert (await bench.result(sent.job)).output == "y" * len(LARGE)
    assert not {n for n in await bench.names() if n.startswith("blob:")}


@pytest.mark.parametrize("end", ["cancel", "retire"])
async def test_large_payload_goes_with_its_job(bench: Bench, end: str) -> None:
    await bench.serve("a")
    sent = job(payload=LARGE)
    await bench.enqueue(sent)
    if end == "cancel":
        await bench.producer().cancel([(sent.flow, sent.job, sent.idem)])
    else:
        await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 10, answer()])
    assert not {n for n in await bench.names() if n.startswith("blob:")}


async def test_large_payload_survives_as_long_as_the_job_may_wait(bench: Bench) -> None:
    await bench.serve("a")
    sent = job(payload=LARGE, timeout_ms=50_000)
    await bench.enqueue(sent)
    assert await bench.redis.pttl(bench.keys.blob(sent.job)) > 50_000
