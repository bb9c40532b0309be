"""Text generation from end to end: many vFMs on one decoder, memory too small for all, callers who leave, workers that end."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from fmplex_broker.errors import DeadlineExceeded, TextTooLong
from fmplex_broker.streams.queue_client import QueueClient, cancel_all
from fmplex_broker.streams.tracing import Tracer
from fmplex_broker.wire.messages import INTERACTIVE, Flow
from fmplex_broker.wire.stats import by_flow, quantile
from tests.support.decoders import POSITIONS
from tests.support.fleets import frozen
from tests.support.generation_fleet import (
    BACKBONE,
    GREEDY,
    PATIENT_MS,
    TOKEN_BYTES,
    VFMS,
    Reading,
    Site,
    assert_same,
    holds_nothing,
    in_hand,
    next_stats,
    prompt,
    read,
    stats,
    submit,
    write,
)
from tests.support.outputs import difference
from tests.support.waiting import until

TIGHT = "tight"  # the same backbone on a worker with little memory for keys and values
TIGHT_TOKENS = 512
COMPARED = {**GREEDY, "logprobs": 2}
SAME = 1e-5
HEADS: dict[str, tuple[dict[str, Any], int]] = {
    "vectors": ({"kind": "embedding", "pooling": "last"}, 0),
    "vectors-lora": ({"kind": "embedding"}, 8),
    "moods": ({"kind": "classification", "labels": ["good", "bad", "so so"], "pooling": "last"}, 4),
    "reward": ({"kind": "regression", "pooling": "last"}, 16),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("generation")) as site:
        site.start("ample", BACKBONE)
        site.start(TIGHT, TIGHT, kv_bytes=TIGHT_TOKENS * TOKEN_BYTES)
        site.serving("ample", TIGHT)
        site.deploy(*VFMS)
        site.deploy("plain", "rank4", "rank8", backbone=TIGHT, prefix="tight-")
        for name, (head, rank) in HEADS.items():
            site.deploy_as(name, head, rank=rank)
        yield site
        assert [name for name, process in site.workers.items() if process.poll() is not None] == [], "a worker died"


@pytest.fixture
async def session(site: Site) -> AsyncIterator[QueueClient]:
    session = QueueClient.connect(site.url)
    yield session
    await session.close()


# ---- whoever shares what is sent ----


async def test_texts_that_share_prompt_and_parameters_are_what_each_is_alone(session: QueueClient) -> None:
    """A long prompt of several texts, and long parameters of several prompts, are stored and decoded once."""
    prompts = [prompt(2000, seed) for seed in range(3)]
    params = {**COMPARED, "max_tokens": 12}
    alone = [await write(session, "rank4", value, **params) for value in prompts]
    pending = await session.submit("rank4", prompts, params, n=3, timeout_ms=PATIENT_MS)
    together = [await one.result() for one in pending]
    for i, reply in enumerate(together):
        assert_same(reply.output, alone[i // 3])


async def test_one_schema_of_many_prompts_takes_no_room(site: Site, session: QueueClient) -> None:
    """Two hundred prompts with one schema of 60 kB: what waits, of a worker that is stopped, is about that."""
    schema = {"type": "object", "properties": {f"p{n}": {"enum": [f"value {n}"]} for n in range(1500)}}
    with frozen(site.workers["ample"]):
        before = (await session.redis.info("memory"))["used_memory"]
        pending = await session.submit("plain", ["x"] * 200, {"schema": schema, "max_tokens": 1}, timeout_ms=PATIENT_MS)
        after = (await session.redis.info("memory"))["used_memory"]
        await cancel_all(pending)
    assert after - before < 1_000_000


# ---- whoever shares the pass ----


async def test_many_vfms_together_write_what_each_writes_alone(session: QueueClient) -> None:
    """Prompts of one token, of a few, and of many prefill chunks; half of the callers read along."""
    asks = [(vfm, prompt(tokens, seed)) for vfm in VFMS for seed, tokens in enumerate((1, 30, 700))]
    alone = [await write(session, vfm, value, **COMPARED, max_tokens=60) for vfm, value in asks]
    assert len({output["text"] for output in alone}) == len(asks), "every vFM and prompt gives another text"
    before = {worker.worker: worker.passes for worker in await next_stats(session)}
    readings = [await read(session, vfm, value, **COMPARED, max_tokens=60) for vfm, value in asks[::2]]
    others = [asyncio.create_task(write(session, vfm, value, **COMPARED, max_tokens=60)) for vfm, value in asks[1::2]]
    together = [await reading.output() for reading in readings], await asyncio.gather(*others)
    for got, wanted in zip(together[0] + together[1], alone[::2] + alone[1::2], strict=True):
        assert_same(got, wanted)
    passes = sum(worker.passes - before[worker.worker] for worker in await next_stats(session))
    assert passes < 60 * len(asks) / 2, "texts shared passes"


async def test_a_text_waits_until_its_first_pass_and_no_longer(session: QueueClient) -> None:
    """What it waits between its passes is no queueing."""
    crowd = [asyncio.create_task(write(session, "plain", prompt(50, i), **GREEDY, max_tokens=100)) for i in range(8)]
    reply = await (await read(session, "rank2", prompt(20), **GREEDY, max_tokens=200)).task
    assert reply.queue_ms < reply.run_ms / 2
    await asyncio.gather(*crowd)


async def test_long_prompts_do_not_change_what_others_are_writing(session: QueueClient) -> None:
    """They join while a text grows and are computed beside it in many chunks."""
    value = prompt(40, 3)
    alone = await write(session, "rank8", value, **COMPARED, max_tokens=200)
    growing = await read(session, "rank8", value, **COMPARED, max_tokens=200)
    await growing.reaches(10)
    await asyncio.gather(*(write(session, vfm, prompt(1500, i), **GREEDY, max_tokens=1) for i, vfm in enumerate(VFMS)))
    assert_same(await growing.output(), alone)


async def test_a_seed_gives_the_same_text_whoever_shares_the_pass(session: QueueClient) -> None:
    chance = {"temperature": 0.9, "top_p": 0.95, "top_k": 100, "ignore_eos": True, "max_tokens": 80}
    asks = [(vfm, prompt(20, i), i) for i, vfm in enumerate(VFMS)]
    alone = [await write(session, vfm, value, seed=seed, **chance) for vfm, value, seed in asks]
    crowd = [asyncio.create_task(write(session, "plain", prompt(50, i), **chance)) for i in range(8)]
    together = await asyncio.gather(*(write(session, vfm, value, seed=seed, **chance) for vfm, value, seed in asks))
    assert [output["text"] for output in together] == [output["text"] for output in alone]
    await asyncio.gather(*crowd)
    other = await write(session, asks[0][0], asks[0][1], seed=999, **chance)
    assert other["text"] != alone[0]["text"]


async def test_without_a_seed_every_text_is_another_one(session: QueueClient) -> None:
    chance = {"temperature": 1.0, "ignore_eos": True, "max_tokens": 40}
    texts = await asyncio.gather(*(write(session, "rank2", prompt(20), **chance) for _ in range(4)))
    assert len({output["text"] for output in texts}) == 4


async def test_vfms_with_heads_answer_beside_texts_that_grow(session: QueueClient) -> None:
    asks = [(name, prompt(tokens, 7)) for name in HEADS for tokens in (1, 25, 400)]
    alone = [await write(session, name, value) for name, value in asks]
    value = prompt(10, 8)
    wanted = await write(session, "rank16", value, **COMPARED, max_tokens=300)
    growing = await read(session, "rank16", value, **COMPARED, max_tokens=300)
    crowd = [await read(session, vfm, prompt(10, i), **GREEDY, max_tokens=300) for i, vfm in enumerate(VFMS)]
    await growing.reaches(20)
    together = await asyncio.gather(*(write(session, name, value) for name, value in asks))
    assert not growing.task.done(), "they did not wait for the texts to end"
    for (name, _), ours, theirs in zip(asks, together, alone, strict=True):
        assert difference(ours, theirs) <= SAME, name
    assert_same(await growing.output(), wanted)
    for reading in crowd:
        await reading.output()


async def test_a_chat_begins_while_long_prompts_of_others_wait_to_begin(session: QueueClient) -> None:
    """They come at once, to a worker that is used to short ones, and are many times what it takes in hand; the chat is claimed,
    computed and answered all the same."""
    await asyncio.gather(*(write(session, "plain", prompt(3, i), **GREEDY, max_tokens=1) for i in range(100)))
    await holds_nothing(session)
    params = {**GREEDY, "max_tokens": 5, "stream": True}
    pending = await session.submit("rank2", [prompt(300, i) for i in range(40)], params, timeout_ms=PATIENT_MS)
    essays = [Reading(p) for p in pending]
    await until(lambda: any(essay.tokens for essay in essays), "the first has begun")
    before = sum(essay.tokens > 0 for essay in essays)
    await write(session, "rank8", prompt(10), **GREEDY, max_tokens=10)
    # By turns: a prompt like that takes two passes if it has all of them, and the chat is in twelve at most.
    assert sum(essay.tokens > 0 for essay in essays) - before <= 12
    for essay in essays:
        await essay.output()


# ---- what is counted and kept ----


async def test_tokens_and_the_times_between_them_are_counted(site: Site, session: QueueClient) -> None:
    site.deploy_as("counted", {"kind": "generation", "max_tokens": 30})
    for i in range(3):
        output = await write(session, "counted", prompt(50, 100 + i), **GREEDY)
        assert (output["completion_tokens"], output["finish_reason"]) == (30, "length"), "as the vFM says"
    counted = by_flow(await next_stats(session))[Flow("counted", INTERACTIVE)]
    assert (counted.done, counted.tokens, counted.prompt_tokens) == (3, 90, 150)
    assert (counted.ttft.total(), counted.gaps.total()) == (3, 87)
    assert quantile(counted.ttft, 0.5), "enqueue to the first token"
    assert quantile(counted.gaps, 0.5), "each token to the next"


async def test_what_begins_alike_is_not_computed_again_within_a_vfm(site: Site, session: QueueClient) -> None:
    """And never across vFMs: neither with another adapter nor for another team with the same version."""
    for name, rank in {"cached": 4, "cached-too": 4, "cached-other": 8}.items():
        site.deploy_as(name, {"kind": "generation"}, rank=rank)
    beginning = prompt(300, 50)["input_ids"]
    ends = [{"input_ids": beginning + prompt(20, seed)["input_ids"]} for seed in (51, 52)]
    first = await write(session, "cached", ends[0], **COMPARED, max_tokens=30)
    again = await write(session, "cached", ends[0], **COMPARED, max_tokens=30)
    assert first["cached_tokens"] == 0
    assert again["cached_tokens"] > 250
    assert_same(again, first)
    shared = await write(session, "cached", ends[1], **COMPARED, max_tokens=30)
    assert 250 < shared["cached_tokens"] <= 300
    for name in ("cached-other", "cached-too"):
        output = await write(session, name, ends[0], **COMPARED, max_tokens=30)
        assert output["cached_tokens"] == 0, f"{name} knows what another vFM was asked"
    fresh = await write(session, "rank4", ends[1], **COMPARED, max_tokens=30)
    assert_same(shared, fresh)


# ---- too little memory for all ----


@pytest.mark.long
async def test_when_memory_is_full_jobs_wait_and_none_dies(session: QueueClient) -> None:
    asks = [(vfm, prompt(40, i)) for i in range(6) for vfm in ("plain", "rank4", "rank8")]
    calls = [asyncio.create_task(write(session, f"tight-{v}", p, **COMPARED, max_tokens=200)) for v, p in asks]
    waited, most = 0, 0
    while not all(call.done() for call in calls):
        (worker,) = await stats(session, TIGHT)
        assert worker.kv_budget_bytes == TIGHT_TOKENS * TOKEN_BYTES
        assert max(worker.kv_bytes, worker.prefix_bytes) <= worker.kv_budget_bytes
        waited, most = max(waited, worker.waiting_memory), max(most, worker.kv_bytes)
        await asyncio.wait(calls, timeout=0.1)
    assert waited > 0, "there was too little memory for all"
    assert most >= TIGHT_TOKENS * TOKEN_BYTES / 2, "and it was used"
    for (vfm, value), call in zip(asks, calls, strict=True):
        assert_same(call.result(), await write(session, vfm, value, **COMPARED, max_tokens=200))
    await holds_nothing(session, TIGHT)


async def test_what_can_never_fit_is_refused_at_once(session: QueueClient) -> None:
    full = [
        asyncio.create_task(write(session, "tight-plain", prompt(40, i), **GREEDY, max_tokens=300)) for i in range(6)
    ]
    with pytest.raises(TextTooLong, match=r"worker\.kv_bytes") as caught:
        await write(session, "tight-rank4", prompt(100), max_tokens=TIGHT_TOKENS)
    assert (caught.value.field, caught.value.status) == ("params.max_tokens", 422)
    with pytest.raises(TextTooLong, match=r"maximum context length is [0-9]+ tokens"):
        await write(session, "tight-rank4", prompt(100), max_tokens=POSITIONS)
    with pytest.raises(TextTooLong, match=r"maximum context length.*the prompt has") as caught:
        await write(session, "tight-rank4", prompt(POSITIONS + 1))
    assert caught.value.field == "input"
    assert not any(call.done() for call in full), "the refused ones did not wait for those that fill the memory"
    assert {output["completion_tokens"] for output in await asyncio.gather(*full)} == {300}


async def test_a_chat_is_not_kept_waiting_by_the_long_texts_of_others(session: QueueClient) -> None:
    """One vFM's texts fill the memory; the short ones of another vFM come one after the other, and each of them gets a seat."""
    essays = [
        asyncio.create_task(write(session, "tight-plain", prompt(20, i), **GREEDY, max_tokens=200)) for i in range(10)
    ]

    async def full() -> bool:
        (worker,) = await stats(session, TIGHT)
        return worker.waiting_memory > 0 or any(essay.done() for essay in essays)

    await until(full, "the memory is full")
    before = sum(essay.done() for essay in essays)
    for i in range(5):
        await write(session, "tight-rank8", prompt(10, i), **GREEDY, max_tokens=16)
    # By turns alone: a chat takes 17 passes, an essay 200, and two of them run at a time.
    assert sum(essay.done() for essay in essays) - before <= 4
    assert not all(essay.done() for essay in essays)
    assert {output["completion_tokens"] for output in await asyncio.gather(*essays)} == {200}


# ---- callers who leave ----


async def test_a_cancelled_text_is_in_no_pass_any_more(session: QueueClient) -> None:
    tracer = Tracer(session.redis, [BACKBONE])
    growing = await read(session, "rank32", prompt(30), **GREEDY, max_tokens=POSITIONS - 100)

    async def recorded() -> bool:
        return any(p.parts for heard in await tracer.read() for p in heard.report.passes)

    await until(recorded, "passes are recorded")
    assert by_flow(await next_stats(session))[Flow("rank32", INTERACTIVE)].kv_bytes > 0
    now_ms = await tracer.now_ms()
    assert await growing.pending.cancel() == "told"
    await holds_nothing(session)
    passes = [p for heard in await tracer.read() for p in heard.report.passes if p.start_ms > now_ms]
    # One may run when the word is sent, and a few more until it is heard.
    assert sum(part.vfm == "rank32" for p in passes for part in p.parts) <= 20
    growing.task.cancel()
    await asyncio.wait([growing.task])


async def test_texts_given_up_at_any_time_leave_nothing_behind(session: QueueClient) -> None:
    """Before they have begun, waiting for memory, in their prompts, in their texts, and just at their ends."""
    rng = random.Random(1)

    async def some(i: int) -> None:
        vfm = rng.choice(["tight-plain", "tight-rank4", "tight-rank8"])
        pending = await submit(session, vfm, prompt(rng.randint(1, 100), i), **GREEDY, max_tokens=rng.randint(1, 300))
        with suppress(TimeoutError):
            await pending.result(rng.choice([0, 0.01, 0.1, 0.5, 2]))
        await pending.cancel()

    await asyncio.gather(*(some(i) for i in range(60)))
    await holds_nothing(session, TIGHT)
    output = await write(session, "tight-plain", prompt(100), **GREEDY, max_tokens=300)
    assert output["completion_tokens"] == 300, "all of the memory is there for the next one"


async def test_a_deadline_in_the_middle_of_a_text_ends_it(session: QueueClient) -> None:
    patient = await read(session, "rank4", prompt(30), **GREEDY, max_tokens=500)
    hasty = await read(session, "rank2", prompt(30), **GREEDY, max_tokens=POSITIONS - 100, timeout_ms=1000)
    reply = await hasty.task
    assert isinstance(reply.error, DeadlineExceeded)
    assert 0 < hasty.tokens < POSITIONS - 100, "what there was by then was told"
    assert (await patient.output())["completion_tokens"] == 500
    await holds_nothing(session)


# ---- workers that end ----


async def test_a_worker_told_to_end_finishes_its_texts(site: Site, session: QueueClient) -> None:
    site.add("ending", backbone="ending")
    site.deploy("plain", "rank8", backbone="ending", prefix="ending-")
    asks = [(vfm, prompt(20, i)) for i in range(2) for vfm in ("plain", "rank8")]
    readings = [await read(session, f"ending-{vfm}", value, **COMPARED, max_tokens=200) for vfm, value in asks]
    for reading in readings:
        await reading.reaches(1)
    process = site.workers.pop("ending")
    process.send_signal(signal.SIGTERM)
    for (vfm, value), reading in zip(asks, readings, strict=True):
        assert_same(await reading.output(), await write(session, vfm, value, **COMPARED, max_tokens=200))
    await until(lambda: process.poll() is not None, "it has ended")
    assert process.returncode == 0, site.log("ending")
    assert "has left" in site.log("ending")


@pytest.mark.long
async def test_what_a_worker_cannot_finish_another_one_does_and_readers_notice_nothing(
    site: Site, session: QueueClient
) -> None:
    names = ["short-a", "short-b"]
    site.add(*names, backbone="short", drain_s=0.2)
    site.deploy("plain", "rank8", backbone="short", prefix="short-")
    asks = [(vfm, prompt(20, i)) for i in range(2) for vfm in ("plain", "rank8")]
    readings = [await read(session, f"short-{vfm}", value, **COMPARED, max_tokens=600) for vfm, value in asks]
    for reading in readings:
        await reading.reaches(20)
    holding = await in_hand(session, ["short-plain", "short-rank8"], "short")
    name = next(name for name in names if holding[site.ids(name)[-1]])
    process = site.workers.pop(name)
    process.send_signal(signal.SIGTERM)
    await until(lambda: process.poll() is not None, "it has ended")
    assert process.returncode == 0, site.log(name)
    assert not all(reading.task.done() for reading in readings), "it left in the middle"
    for (vfm, value), reading in zip(asks, readings, strict=True):
        assert_same(await reading.output(), await write(session, vfm, value, **COMPARED, max_tokens=600))
    assert (await readings[0].task).worker != site.ids(name)[-1]
    await holds_nothing(session, "short")
