"""cancel: undelivered jobs are answered `cancelled`; of delivered ones the workers are told."""

from __future__ import annotations

import asyncio

import pytest

from fmplex_broker.streams.backbone_channel import BackboneChannel
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.producer import NewJob
from tests.contract.harness import Bench, answer, job


async def cancel(bench: Bench, sent: NewJob, inbox: str = "client", job_id: str | None = None) -> str:
    [state] = await bench.producer(inbox).cancel([(sent.flow, job_id or sent.job, sent.idem)], [sent.job])
    return state


async def test_an_undelivered_job_never_runs_and_is_answered(bench: Bench) -> None:
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent, job(id="other"))
    assert await cancel(bench, sent) == "cancelled"
    assert [(m.job, m.reply.error.code) for m in await bench.mail()] == [(sent.job, "cancelled")]
    assert (await bench.result(sent.job)).error.code == "cancelled"
    assert [j.job for j in await bench.claimed(worker)] == ["other"]
    assert await bench.depth() == 1


async def test_a_given_back_job_never_runs_again(bench: Bench) -> None:
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    await worker.release(await bench.claimed(worker))
    assert await cancel(bench, sent) == "cancelled"
    assert (await bench.claimed(worker), await bench.depth(), await bench.pending()) == ([], 0, {})
    assert len(await bench.mail()) == 1


async def test_the_worker_of_a_running_job_is_told(bench: Bench) -> None:
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    [held] = await bench.claimed(worker)
    assert await cancel(bench, sent) == "told"
    assert await bench.mail() == []
    _, words, _ = await asyncio.wait_for(worker.listen(), 2)
    assert words == [f"{held.address} {held.entry}"]
    assert await worker.settle([(held, answer())]) == [True]
    assert len(await bench.mail()) == 1


async def test_a_worker_that_starts_later_hears_the_words_too(bench: Bench) -> None:
    """The job may come to it from a worker that died after the cancellation."""
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    [held] = await bench.claimed(worker)
    await cancel(bench, sent)
    _, words, _ = await (await bench.worker("later")).listen()
    assert f"{held.address} {held.entry}" in words


async def test_shared_while_others_wait(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first, second = job(key="k"), job(key="k")
    await bench.enqueue(first, inbox="one")
    await bench.enqueue(second, inbox="two")
    assert await cancel(bench, second, "two", first.job) == "shared"
    assert await cancel(bench, second, "two", first.job) == "shared"  # said twice: still not mine to end
    assert await worker.settle([(j, answer()) for j in await bench.claimed(worker)]) == [True]
    assert (len(await bench.mail("one")), await bench.mail("two")) == (1, [])


async def test_shared_when_the_first_leaves_before_the_others(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first, second = job(key="k"), job(key="k")
    await bench.enqueue(first, inbox="one")
    await bench.enqueue(second, inbox="two")
    assert await cancel(bench, first, "one") == "shared"
    await worker.settle([(j, answer(1)) for j in await bench.claimed(worker)])
    assert [m.reply.output for m in await bench.mail("two")] == [1]


async def test_gone_when_answered_or_never_there(bench: Bench) -> None:
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    await worker.settle([(j, answer()) for j in await bench.claimed(worker)])
    assert await cancel(bench, sent) == "gone"
    assert await cancel(bench, job()) == "gone"
    assert await cancel(bench, job("nobody")) == "gone"
    assert len(await bench.mail()) == 1


async def test_a_second_cancel_is_gone(bench: Bench) -> None:
    await bench.serve("a")
    sent = job()
    await bench.enqueue(sent)
    assert [await cancel(bench, sent) for _ in range(2)] == ["cancelled", "gone"]
    assert len(await bench.mail()) == 1


async def test_the_key_is_free_again(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    waiting, running = job(key="k1"), job(key="k2")
    await bench.enqueue(running)
    await bench.claimed(worker)
    await bench.enqueue(waiting)
    assert [await cancel(bench, j) for j in (waiting, running)] == ["cancelled", "told"]
    again = [job(key="k1"), job(key="k2", payload=b"another request")]
    assert await bench.enqueue(*again) == ["new", "new"]
    assert {j.job for j in await bench.claimed(worker)} == {j.job for j in again}


async def test_a_late_cancel_does_not_hit_the_keys_next_job(bench: Bench) -> None:
    await bench.serve("a")
    first, second = job(key="k"), job(key="k")
    await bench.enqueue(first)
    await cancel(bench, first)
    await bench.enqueue(second)
    assert await cancel(bench, first) == "gone"
    assert await bench.depth() == 1


@pytest.mark.parametrize("asks_first", [True, False])
async def test_a_late_cancel_does_not_take_the_job_from_the_callers_next_attempt(
    bench: Bench, asks_first: bool
) -> None:
    """A reply was lost: the caller asks again, and only then is its first attempt taken back."""
    await bench.serve("a")
    worker = await bench.worker()
    if not asks_first:
        await bench.enqueue(job(key="k"), inbox="elsewhere")
    first, second, third = job(key="k"), job(key="k"), job(key="k")
    await bench.enqueue(first)
    for late, attempt in ((first, second), (second, third)):
        assert await bench.enqueue(attempt) == ["dup"]
        assert await cancel(bench, late) in ("shared", "gone")
    assert await bench.depth() == 1
    await worker.settle([(held, answer(1)) for held in await bench.claimed(worker)])
    assert [m.reply.output for m in await bench.mail()] == [1]


async def test_the_last_attempt_may_be_cancelled(bench: Bench) -> None:
    await bench.serve("a")
    first, second = job(key="k"), job(key="k")
    await bench.enqueue(first)
    await bench.enqueue(second)
    assert await cancel(bench, first) == "shared"
    assert await cancel(bench, second, job_id=first.job) == "cancelled"
    assert [m.job for m in await bench.mail()] == [first.job]
    assert await bench.depth() == 0


async def test_who_hangs_up_while_it_asks_again_leaves_the_job_to_the_first(bench: Bench) -> None:
    """It has not heard that there is a job already: the first who asked waits for that, and may cancel it."""
    await bench.serve("a")
    first, second = job(key="k"), job(key="k")
    await bench.enqueue(first)
    await bench.enqueue(second)
    assert (await cancel(bench, second), await bench.depth()) == ("gone", 1)
    assert await cancel(bench, first) == "cancelled"


async def test_who_asks_again_is_told_once(bench: Bench) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(key="k"))
    await bench.enqueue(job(key="k"))
    held = await bench.claimed(worker)
    assert await worker.send_chunks([(held[0], b"chunk")]) == [True]
    assert await bench.redis.xlen(bench.keys.inbox("client")) == 1
    await worker.settle([(held[0], answer())])
    assert await bench.redis.xlen(bench.keys.inbox("client")) == 2
    assert await bench.redis.keys(bench.keys.prefix + "subs:*") == []


async def test_taking_back_a_failed_call_spares_the_one_that_came_after_it(bench: Bench) -> None:
    await bench.serve("a")
    channel = BackboneChannel(bench.redis, Scripts(bench.redis), "minilm", "client")
    first, second = job(key="k"), job(key="k")
    await channel.enqueue([first])  # its reply is lost on the way
    assert [(got.status, got.job) for got in await channel.enqueue([second])] == [("dup", first.job)]
    channel.abandon([first])
    await channel.close()
    assert await bench.depth() == 1
    assert await bench.result(first.job) is None


async def test_many_at_once(bench: Bench) -> None:
    await bench.serve("a", "b")
    jobs = [job("ab"[i % 2]) for i in range(150)]
    await bench.enqueue(*jobs)
    states = await bench.producer().cancel([(j.flow, j.job, j.idem) for j in jobs])
    assert states == ["cancelled"] * 150
    assert await bench.depth("a") == await bench.depth("b") == 0
    assert len(await bench.mail()) == 150


async def test_a_flow_cancelled_to_the_end_wakes_again(bench: Bench) -> None:
    """It may still be listed as ready; its next job must be found."""
    await bench.serve("a")
    worker, sent = await bench.worker(), job()
    await bench.enqueue(sent)
    await cancel(bench, sent)
    assert await bench.claimed(worker) == []
    rung = await bench.rings()
    await bench.enqueue(job())
    assert await bench.rings() == rung + 1
    assert len(await bench.claimed(worker)) == 1
