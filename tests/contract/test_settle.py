"""settle and tell: fenced by ownership; result, reply, acknowledge and delete in one step."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.contract.harness import Bench, answer, job


async def test_settle_stores_replies_acknowledges_and_deletes(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"))
    [held] = await bench.claimed(worker)
    assert await worker.settle([(held, answer(7))]) == [True]
    assert (await bench.result("j")).output == 7
    assert [(m.job, m.reply.output) for m in await bench.mail()] == [("j", 7)]
    assert (await bench.depth(), await bench.pending()) == (0, {})


async def test_result_and_inbox_have_a_ttl(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"))
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    assert 59_000 < await bench.redis.pttl(bench.keys.result("j")) <= 60_000
    assert 0 < await bench.redis.pttl(bench.keys.inbox("client")) <= 900_000


async def test_wrong_owner_gets_0_and_sends_nothing(bench: Bench) -> None:
    await bench.serve("a")
    owner, thief = await bench.worker("owner"), await bench.worker("thief")
    await bench.enqueue(job(id="j"))
    [held] = await bench.claimed(owner)
    assert await thief.settle([(held, answer("stolen"))]) == [False]
    assert await thief.send_chunks([(held, b"chunk")]) == [False]
    assert (await bench.mail(), await bench.result("j"), await bench.depth()) == ([], None, 1)
    assert await owner.settle([(held, answer("mine"))]) == [True]


async def test_a_second_settle_sends_nothing(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"))
    [held] = await bench.claimed(worker)
    assert await worker.settle([(held, answer(1)), (held, answer(2))]) == [True, False]
    assert await worker.settle([(held, answer(3))]) == [False]
    assert [m.reply.output for m in await bench.mail()] == [1]


async def test_a_job_given_back_is_not_its_holders_any_more(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job())
    [held] = await bench.claimed(worker)
    await worker.release([held])
    assert await worker.settle([(held, answer())]) == [False]
    assert await bench.mail() == []


async def test_only_the_first_result_of_a_job_is_ever_sent(bench: Bench) -> None:
    """The entry came twice (a delayed enqueue landed after a cancellation): fence and NX are both needed."""
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    assert await bench.producer().cancel([(sent.flow, sent.job, sent.idem)]) == ["cancelled"]
    assert await bench.enqueue(sent) == ["new"]
    assert await worker.settle([(j, answer("late")) for j in await bench.claimed(worker)]) == [True]
    assert [m.reply.error.code for m in await bench.mail()] == ["cancelled"]
    assert (await bench.result(sent.job)).error.code == "cancelled"
    assert await bench.depth() == 0


async def test_many_at_once_says_which(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(*(job() for _ in range(150)))
    jobs = await bench.claimed(worker)
    await worker.settle([(j, answer()) for j in jobs[::3]])
    assert await worker.settle([(j, answer()) for j in jobs]) == [i % 3 != 0 for i in range(150)]
    assert set(Counter(m.job for m in await bench.mail()).values()) == {1}


async def test_a_job_without_inbox_has_its_result_only(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"), inbox="")
    assert await worker.settle([(j, answer()) for j in await bench.claimed(worker)]) == [True]
    assert await bench.result("j") is not None
    assert not {n for n in await bench.names() if n.startswith("in:")}


async def test_tell_reaches_all_who_wait_and_ends_nothing(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(key="k"), inbox="one")
    await bench.enqueue(job(key="k"), inbox="two")
    [held] = await bench.claimed(worker)
    assert await worker.send_chunks([(held, b"Once upon"), (held, b" a time")]) == [True, True]
    for inbox in ("one", "two"):
        assert [m.chunk for m in await bench.mail(inbox)] == [b"Once upon", b" a time"]
    assert await worker.settle([(held, answer())]) == [True]
    assert await worker.send_chunks([(held, b"too late")]) == [False]
    assert [m.chunk for m in await bench.mail("one")][2:] == [None]


async def test_nothing_is_told_behind_a_reply(bench: Bench) -> None:
    """An enqueue sent twice whose first copy is held up on its way and comes after a cancel: a second entry of one job."""
    await bench.serve("a")
    worker = await bench.worker()
    sent = job(id="j", key="k")
    await bench.enqueue(sent)
    [first] = await bench.claimed(worker)
    assert await bench.producer().cancel([(sent.flow, sent.job, sent.idem)]) == ["told"]
    assert (await bench.enqueue(sent))[0] == "new"
    [second] = await bench.claimed(worker)
    assert await worker.send_chunks([(first, b"one"), (second, b"two")]) == [True, True]
    assert await worker.settle([(first, answer())]) == [True]
    assert await worker.send_chunks([(second, b"too late")]) == [False]
    await worker.settle([(second, answer())])
    assert [m.chunk for m in await bench.mail()] == [b"one", b"two", None]


async def test_one_reply_each_when_owner_and_successor_settle_at_once(real: Bench) -> None:
    """Real concurrency: the old owner settles while it is being condemned and its jobs change hands."""
    await real.serve("a")
    old, new = await real.worker("old"), await real.worker("new")
    jobs = [job() for _ in range(60)]
    await real.enqueue(*jobs)
    held = await real.claimed(old)
    await real.lapse(old)

    async def take_over() -> list[bool]:
        while (await new.reap(10**6, max_attempts=3, budget=7)).more:
            pass
        return await new.settle([(j, answer("new")) for j in await real.claimed(new)])

    async def linger() -> list[bool]:
        return [(await old.settle([(j, answer("old"))]))[0] for j in held]

    by_old, by_new = await asyncio.gather(linger(), take_over())
    assert sum(by_old) + sum(by_new) == 60
    assert Counter(m.job for m in await real.mail()) == Counter(j.job for j in jobs)
    assert (await real.depth(), await real.pending()) == (0, {})


async def test_a_failure_half_way_loses_nothing(bench: Bench) -> None:
    """Writes of a script are not rolled back. Entry and result change before the inbox is told: the others of the batch are
    settled one by one, and whoever was not told finds the result."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="first"), inbox="broken")
    await bench.enqueue(job(id="second"), inbox="client")
    held = [(j, answer()) for j in await bench.claimed(worker)]
    await bench.redis.set(bench.keys.inbox("broken"), "not a stream", px=5_000)
    assert await worker.settle(held) == [False, True]
    assert await bench.result("first") is not None
    assert [m.job for m in await bench.mail()] == ["second"]
    assert await bench.pending() == {}


async def test_a_job_alone_whose_inbox_is_none_is_settled_all_the_same(bench: Bench) -> None:
    """What it has broken is no reason to end the worker's life: its result is stored."""
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="only"), inbox="broken")
    held = [(j, answer()) for j in await bench.claimed(worker)]
    await bench.redis.set(bench.keys.inbox("broken"), "not a stream", px=5_000)
    assert await worker.settle(held) == [False]
    assert await bench.result("only") is not None
    assert (await bench.depth(), await bench.pending()) == (0, {})
