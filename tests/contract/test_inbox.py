"""The reply inbox: a message that got lost costs time, never an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fmplex_broker.streams import inbox as inbox_module
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.inbox import HEAL_EVERY_S, Inbox
from fmplex_broker.wire.messages import Reply, encode_reply
from tests.contract.harness import BACKBONE, Bench, answer, job

A_FEW_S = 4 * HEAL_EVERY_S
SOON_S = 5.0


@pytest.fixture
def no_healing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the message itself can bring the reply."""
    monkeypatch.setattr(inbox_module, "HEAL_EVERY_S", 3600.0)


@pytest.fixture
async def inbox(bench: Bench) -> AsyncIterator[Inbox]:
    inbox = Inbox(bench.redis, BACKBONE, "client", bench.producer().results)
    yield inbox
    await inbox.close()


async def run(bench: Bench, worker: Consumer, reply: bytes) -> None:
    assert all(await worker.settle([(j, reply) for j in await bench.claimed(worker)]))


@pytest.mark.usefixtures("no_healing")
async def test_a_reply_resolves_its_future(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    futures = {n: inbox.expect(f"j{n}") for n in range(3)}
    await bench.enqueue(*(job(id=f"j{n}") for n in futures))
    await worker.settle([(j, answer(j.job)) for j in await bench.claimed(worker)])
    for n, future in futures.items():
        assert (await asyncio.wait_for(future, SOON_S)).output == f"j{n}"


@pytest.mark.usefixtures("no_healing")
async def test_a_large_reply_is_fetched_by_key_at_once(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    future = inbox.expect("j")
    await bench.enqueue(job(id="j"))
    await run(bench, worker, answer("y" * 100_000))
    assert len((await asyncio.wait_for(future, SOON_S)).output) == 100_000


async def test_heals_when_the_message_was_deleted(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"))
    await run(bench, worker, answer(5))
    await bench.redis.delete(bench.keys.inbox("client"))
    assert (await asyncio.wait_for(inbox.expect("j"), A_FEW_S)).output == 5


async def test_heals_when_the_message_was_trimmed(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await bench.enqueue(job(id="j"))
    await run(bench, worker, answer(5))
    await bench.redis.xtrim(bench.keys.inbox("client"), maxlen=0)
    assert (await asyncio.wait_for(inbox.expect("j"), A_FEW_S)).output == 5


async def test_goes_on_after_the_inbox_was_deleted(bench: Bench, inbox: Inbox) -> None:
    """Healing helps where the new stream begins with the id that the old one ended with (one millisecond)."""
    await bench.serve("a")
    worker = await bench.worker()
    for name in ("one", "two"):
        future = inbox.expect(name)
        await bench.enqueue(job(id=name))
        await run(bench, worker, answer(name))
        assert (await asyncio.wait_for(future, A_FEW_S)).output == name
        await bench.redis.delete(bench.keys.inbox("client"))


async def test_words_of_strangers_and_chunks_do_no_harm(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    future = inbox.expect("j")
    await bench.redis.xadd(bench.keys.inbox("client"), {"j": "stranger", "r": answer()})
    await bench.enqueue(job(id="j"))
    [held] = await bench.claimed(worker)
    await worker.send_chunks([(held, b"chunk")])
    await worker.settle([(held, answer(1))])
    assert (await asyncio.wait_for(future, A_FEW_S)).output == 1


@pytest.mark.parametrize("bad", [b"\xc1garbage", b"\x01", encode_reply(Reply()).replace(b"\x01", b"\x02", 1)])
@pytest.mark.parametrize("where", ["message", "result"])
async def test_a_reply_that_cannot_be_read_harms_its_own_job_only(
    bench: Bench, inbox: Inbox, bad: bytes, where: str
) -> None:
    """A worker of another version answered: that job gets an error, all others their replies."""
    await bench.serve("a")
    worker = await bench.worker()
    broken, fine = inbox.expect("broken"), inbox.expect("fine")
    await bench.enqueue(job(id="broken"), job(id="fine"))
    one, two = await bench.claimed(worker)
    await worker.settle([(one, bad)])
    if where == "result":
        await bench.redis.delete(bench.keys.inbox("client"))
    await worker.settle([(two, answer(2))])
    assert (await asyncio.wait_for(fine, A_FEW_S)).output == 2
    reply = await asyncio.wait_for(broken, A_FEW_S)
    assert reply.error is not None
    assert "read" in str(reply.error)


async def test_two_who_wait_for_one_job_are_both_answered(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    first, second = inbox.expect("j"), inbox.expect("j")
    await bench.enqueue(job(id="j"))
    await run(bench, worker, answer(3))
    replies = await asyncio.wait_for(asyncio.gather(first, second), A_FEW_S)
    assert [r.output for r in replies] == [3, 3]


async def test_close_leaves_nothing(bench: Bench, inbox: Inbox) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    future = inbox.expect("j")
    await bench.enqueue(job(id="j"))
    await run(bench, worker, answer())
    await inbox.close()
    assert future.cancelled() or future.done()
    assert "in:client" not in await bench.names()


async def test_close_ends_even_if_a_cancellation_gets_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(bench.redis, BACKBONE, "client", bench.producer().results)
    lost: list[str] = []

    async def deaf(*_: object, **__: object) -> list[object]:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not lost:
                lost.append("once")
                return []
            raise
        return []

    monkeypatch.setattr(bench.redis, "xread", deaf)
    inbox.expect("j")
    await asyncio.sleep(0)
    await asyncio.wait_for(inbox.close(), A_FEW_S)
    assert lost
