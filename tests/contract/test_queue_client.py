"""Session: submit, await, cancel; what the gateway and a client inside the cluster rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fmplex_broker.errors import (
    BrokerUnavailable,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    JobFailed,
    QueueFull,
    RateLimited,
    UnknownVfm,
    VfmClosed,
)
from fmplex_broker.specs.heads import Generation
from fmplex_broker.streams import queue_client as queue_client_module
from fmplex_broker.streams.connection import Scripts
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.embedded import EmbeddedServer
from fmplex_broker.streams.queue_client import Pending, QueueClient, cancel_all, gather_replies
from fmplex_broker.wire.messages import OFFLINE, Reply, decode_request, encode_reply
from tests.contract.harness import Bench, answer, job
from tests.support.waiting import until_soon


async def echo(bench: Bench, worker: Consumer) -> list[str]:
    """Run what is queued: each text comes back in capitals."""
    jobs = await bench.claimed(worker, interactive=256, offline=256)
    texts = [decode_request(j.payload).input for j in jobs]
    await worker.settle([(j, answer(text.upper())) for j, text in zip(jobs, texts, strict=True)])
    return texts


async def outputs(pending: list[Pending]) -> list[Any]:
    return [reply.output for reply in await gather_replies(pending)]


# --- the way there and back -------------------------------------------------------------------------------------------


async def test_submit_and_result(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    pending = await session.submit("a", ["one", "two", "three"])
    await echo(bench, worker)
    assert await outputs(pending) == ["ONE", "TWO", "THREE"]
    assert await outputs(pending) == ["ONE", "TWO", "THREE"]  # may be asked again


async def test_many_inputs_and_callers_share_round_trips(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", "b")
    worker = await bench.worker()
    calls = await asyncio.gather(*(session.submit("ab"[i % 2], [f"{i}.{n}" for n in range(9)]) for i in range(20)))
    assert len(await echo(bench, worker)) == 180
    for i, pending in enumerate(calls):
        assert await outputs(pending) == [f"{i}.{n}" for n in range(9)]


async def test_classes_and_deadlines_are_passed_on(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    await session.submit("a", ["x"], cls=OFFLINE, timeout_ms=77_000)
    [held] = await bench.claimed(worker, offline=1)
    assert held.deadline_ms - held.enqueued_ms == pytest.approx(77_000, abs=50)


async def test_an_error_of_the_job_is_a_reply(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    [pending] = await session.submit("a", ["x"])
    await worker.settle(
        [(j, encode_reply(Reply(error=JobFailed("no"), worker="w1"))) for j in await bench.claimed(worker)]
    )
    reply = await pending.result()
    assert (type(reply.error), reply.worker) == (JobFailed, "w1")


async def test_large_texts_both_ways(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    pending = await session.submit("a", ["x" * 200_000, "small"])
    await echo(bench, worker)
    assert await outputs(pending) == ["X" * 200_000, "SMALL"]


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_admission_comes_before_the_queue(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    with pytest.raises(InvalidInput, match="empty") as caught:
        await session.submit("a", ["fine", " "])
    assert caught.value.field == "inputs.1"
    assert await bench.depth() == 0


async def test_unknown_and_closed(bench: Bench, session: QueueClient) -> None:
    with pytest.raises(UnknownVfm, match="nobody"):
        await session.submit("nobody", ["x"])
    await bench.serve("a")
    await bench.enqueue(job())
    await bench.scripts("retire", bench.keys.vfms, ["a", "drain", 10, b""])
    with pytest.raises(VfmClosed):
        await session.submit("a", ["x"])
    await bench.scripts("retire", bench.keys.vfms, ["a", "answer", 10, answer()])
    with pytest.raises(UnknownVfm):
        await session.submit("a", ["x"])


async def test_a_removed_vfm_is_noticed_behind_the_cache(bench: Bench) -> None:
    await bench.serve("a")
    session = QueueClient(bench.redis, scripts=bench.scripts, spec_ttl_s=1000)
    await session.vfm("a")
    await bench.scripts("retire", bench.keys.vfms, ["a", "drain", 10, b""])
    for _ in range(2):
        with pytest.raises(UnknownVfm):
            await session.submit("a", ["x"])
    await session.close()


@pytest.mark.parametrize("inputs", [15, 150])
async def test_all_or_none_when_the_cap_is_hit_half_way(bench: Bench, session: QueueClient, inputs: int) -> None:
    await bench.serve("a", cap=inputs - 5)
    worker = await bench.worker()
    [first] = await session.submit("a", ["first"])
    with pytest.raises(QueueFull) as caught:
        await session.submit("a", [f"{n}" for n in range(inputs)])
    assert caught.value.retry_after > 0
    assert await echo(bench, worker) == ["first"]
    assert (await first.result()).output == "FIRST"
    [again] = await session.submit("a", ["again"])
    await echo(bench, worker)
    assert (await again.result()).output == "AGAIN"


async def test_a_call_is_charged_to_the_rate_as_a_whole(bench: Bench, session: QueueClient) -> None:
    """A call larger than a second's worth is taken from a full bucket and leaves a debt; else it could never be taken."""
    await bench.serve("a", rate=5)
    await session.submit("a", ["word"] * 9)
    assert await bench.depth() == 9
    with pytest.raises(RateLimited) as caught:
        await session.submit("a", ["word", "another"])
    assert 0 < caught.value.retry_after <= 2
    assert await bench.depth() == 9  # all or none


async def test_several_texts_of_a_prompt_are_charged_as_a_whole(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", head=Generation(), rate=1000)
    assert len(await session.submit("a", ["x"], {"max_tokens": 500}, n=4)) == 4
    assert await bench.depth() == 4
    with pytest.raises(RateLimited):
        await session.submit("a", ["x"], {"max_tokens": 500}, n=4)
    assert await bench.depth() == 4


async def test_all_or_none_when_a_key_conflicts_half_way(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    await session.submit("a", ["x", "y"], idempotency_key="k")
    with pytest.raises(Conflict) as caught:
        await session.submit("a", ["x", "other", "z"], idempotency_key="k")
    assert caught.value.field == "idempotency_key"
    assert await bench.depth() == 2  # z was taken back, x is still the first call's


async def test_nothing_stays_queued_when_the_caller_goes_away_while_submitting(
    bench: Bench, session: QueueClient
) -> None:
    await bench.serve("a")
    for steps in (1, 2, 3, 5, 8, 13, 21, 34):
        submitting = asyncio.create_task(session.submit("a", [f"{n}" for n in range(130)]))
        for _ in range(steps):
            await asyncio.sleep(0)
        submitting.cancel()
        done = (await asyncio.gather(submitting, return_exceptions=True))[0]
        if isinstance(done, list):
            await cancel_all(done)

    async def empty() -> bool:
        return await bench.depth() == 0

    await until_soon(empty)
    [pending] = await session.submit("a", ["x"])  # the session is as good as new
    await echo(bench, await bench.worker())
    assert (await pending.result()).output == "X"


# --- cancel and deadline ----------------------------------------------------------------------------------------------


async def test_cancel_before_it_runs(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    gone, stays = await session.submit("a", ["gone", "stays"])
    assert await gone.cancel() == "cancelled"
    assert await echo(bench, worker) == ["stays"]
    assert (await stays.result()).output == "STAYS"
    with pytest.raises(Cancelled):
        await gone.result()
    assert await gone.cancel() == "gone"


async def test_cancel_while_it_runs(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    [pending] = await session.submit("a", ["x"])
    [held] = await bench.claimed(worker)
    assert await pending.cancel() == "told"
    assert (await worker.listen()).cancelled == [f"{held.address} {held.entry}"]
    assert await worker.settle([(held, answer())]) == [True]
    with pytest.raises(Cancelled):
        await pending.result()


async def test_result_with_a_timeout_leaves_the_job_alone(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    [pending] = await session.submit("a", ["x"])
    with pytest.raises(TimeoutError, match="goes on"):
        await pending.result(timeout_s=0.01)
    await echo(bench, await bench.worker())
    assert (await pending.result(timeout_s=5)).output == "X"


async def test_deadline_exceeded_when_nobody_answers(
    bench: Bench, session: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_client_module, "_GRACE_S", 0.02)
    await bench.serve("a")
    [pending] = await session.submit("a", ["x"], timeout_ms=30)
    with pytest.raises(DeadlineExceeded):
        await pending.result()
    assert await bench.depth() == 0  # nor will anybody run it


async def test_a_caller_who_hangs_up_cancels_what_still_waits(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    worker = await bench.worker()
    pending = await session.submit("a", [f"{n}" for n in range(5)])
    held = await bench.claimed(worker, room=2)
    await worker.settle([(held[0], answer())])
    await pending[0].result()
    call = asyncio.create_task(gather_replies(pending))
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)

    async def only_the_running_one_is_left() -> bool:
        return await bench.depth() == 1

    await until_soon(only_the_running_one_is_left)
    assert len((await worker.listen()).cancelled) == 1


# --- idempotency ------------------------------------------------------------------------------------------------------


async def test_one_key_one_run_and_every_caller_is_answered(
    bench: Bench, session: QueueClient, other: QueueClient
) -> None:
    """Twice in one process, once in another, and once more when it is done."""
    await bench.serve("a")
    worker = await bench.worker()
    calls = await asyncio.gather(*(s.submit("a", ["x", "y"], idempotency_key="k") for s in (session, session, other)))
    assert await echo(bench, worker) == ["x", "y"]
    calls.append(await session.submit("a", ["x", "y"], idempotency_key="k"))
    calls.append(await other.submit("a", ["x", "y"], idempotency_key="k"))
    for call in calls:
        assert await asyncio.wait_for(outputs(call), 3) == ["X", "Y"]
    assert await echo(bench, worker) == []


async def test_keys_of_different_vfms_do_not_meet(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a", "b")
    for vfm in "ab":
        await session.submit(vfm, ["x"], idempotency_key="k")
    assert await bench.depth("a") == await bench.depth("b") == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_cancel_by_one_of_two_who_wait(
    bench: Bench, session: QueueClient, other: QueueClient, elsewhere: bool
) -> None:
    await bench.serve("a")
    [first] = await session.submit("a", ["x"], idempotency_key="k")
    [second] = await (other if elsewhere else session).submit("a", ["x"], idempotency_key="k")
    assert await second.cancel() == "shared"
    await echo(bench, await bench.worker())
    assert (await asyncio.wait_for(first.result(), 3)).output == "X"
    with pytest.raises(Cancelled):
        await second.result()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_who_leaves_last_ends_the_job(bench: Bench, session: QueueClient, order: tuple[int, ...]) -> None:
    await bench.serve("a")
    waiting = [(await session.submit("a", ["x"], idempotency_key="k"))[0] for _ in order]
    assert [await waiting[n].cancel() for n in order] == ["shared", "shared", "cancelled"]
    assert await bench.depth() == 0


async def test_after_a_cancel_the_key_is_free(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    [first] = await session.submit("a", ["x"], idempotency_key="k")
    await first.cancel()
    [second] = await session.submit("a", ["x"], idempotency_key="k")
    await echo(bench, await bench.worker())
    assert (await second.result()).output == "X"


# --- the server comes and goes ----------------------------------------------------------------------------------------


async def test_server_away_at_start_then_recovery() -> None:
    with EmbeddedServer() as server:
        server.kill()
        session = QueueClient.connect(server.url)
        with pytest.raises(BrokerUnavailable):
            await session.submit("a", ["x"])
        server.start()
        bench = Bench(session.redis, Scripts(session.redis))
        await bench.serve("a")
        [pending] = await session.submit("a", ["x"])
        await echo(bench, await bench.worker())
        assert (await pending.result()).output == "X"
        await session.close()


async def test_waiting_callers_are_answered_after_a_restart(crashable: tuple[EmbeddedServer, Bench]) -> None:
    server, bench = crashable
    await bench.serve("a")
    worker = await bench.worker()
    session = QueueClient.connect(server.url)
    pending = await session.submit("a", ["x", "y"])
    server.kill()
    with pytest.raises(BrokerUnavailable):
        await session.submit("a", ["while away"])
    server.start()
    assert await echo(bench, worker) == ["x", "y"]
    assert await asyncio.wait_for(outputs(pending), 5) == ["X", "Y"]
    await session.close()


async def test_deadline_exceeded_also_while_the_server_is_away(
    crashable: tuple[EmbeddedServer, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_client_module, "_GRACE_S", 0.02)
    server, bench = crashable
    await bench.serve("a")
    session = QueueClient.connect(server.url)
    [pending] = await session.submit("a", ["x"], timeout_ms=200)
    server.kill()
    with pytest.raises(DeadlineExceeded):
        await pending.result()
    server.start()
    await session.close()


async def test_close_frees_whoever_waits_and_leaves_nothing(bench: Bench) -> None:
    await bench.serve("a")
    session = QueueClient(bench.redis, scripts=bench.scripts)
    [pending] = await session.submit("a", ["x"])
    waiting = asyncio.create_task(pending.result())
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(Cancelled, match="closed"):
        await waiting
    assert not {n for n in await bench.names() if n.startswith("in:")}
