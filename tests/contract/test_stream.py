"""Texts that are told as they come: from `tell` and `settle` to `Pending.stream()`, and what may go wrong on the way."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from fmplex_broker.errors import Cancelled, Conflict, DeadlineExceeded, InvalidInput, JobFailed, StreamRestarted
from fmplex_broker.specs.heads import Generation
from fmplex_broker.streams import inbox as inbox_module
from fmplex_broker.streams import queue_client as queue_client_module
from fmplex_broker.streams.claims import Claimed
from fmplex_broker.streams.consumer import Consumer
from fmplex_broker.streams.queue_client import Pending, QueueClient
from fmplex_broker.wire.messages import Reply, decode_request, encode_reply
from fmplex_broker.wire.streaming import Chunk, Delta, encode_chunk
from tests.contract.harness import Bench
from tests.support.waiting import until_soon

WORDS = ["Once", " upon", " a", " time"]
TEXT = "".join(WORDS)
STREAM = {"stream": True}
SOON_S = 10.0


@pytest.fixture
async def session(bench: Bench, session: QueueClient) -> QueueClient:
    await bench.serve("story", head=Generation())
    return session


def ended(text: str = TEXT, tokens: int = len(WORDS)) -> bytes:
    usage = {"prompt_tokens": 2, "completion_tokens": tokens, "cached_tokens": 0}
    return encode_reply(Reply({"text": text, "finish_reason": "stop", **usage}))


def said(attempt: int = 1, words: list[str] = WORDS) -> list[bytes]:
    """The chunks of a run, one a word."""
    chunks, at = [], 0
    for n, word in enumerate(words):
        chunks.append(encode_chunk(Chunk(attempt, n + 1, Delta(at, word, n, 1))))
        at += len(word)
    return chunks


class Story:
    """One job's text, as far as its reader has come."""

    def __init__(self, pending: Pending) -> None:
        self.parts: list[Delta] = []
        self.reading = asyncio.create_task(self._read(pending))

    async def _read(self, pending: Pending) -> None:
        async for part in pending.stream():
            self.parts.append(part)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    async def comes_to(self, text: str) -> None:
        async def there() -> bool:
            return self.text == text

        await until_soon(there)

    async def whole(self) -> str:
        await asyncio.wait_for(self.reading, SOON_S)
        return self.text


async def submit(session: QueueClient, **more: Any) -> Pending:
    [pending] = await session.submit("story", ["Tell me"], STREAM, **more)
    return pending


async def take(bench: Bench, worker: Consumer) -> Claimed:
    [held] = await bench.claimed(worker)
    return held


async def tell(worker: Consumer, held: Claimed, *chunks: bytes) -> None:
    assert all(await worker.send_chunks([(held, chunk) for chunk in chunks]))


# --- the way there and back -------------------------------------------------------------------------------------------


async def test_the_text_comes_as_it_is_told(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await submit(session)
    story, held, seen = Story(pending), await take(bench, worker), ""
    for word, chunk in zip(WORDS, said(), strict=True):
        await tell(worker, held, chunk)
        seen += word
        await story.comes_to(seen)
    await worker.settle([(held, ended())])
    assert await story.whole() == TEXT
    assert [part.at for part in story.parts] == [0, 4, 9, 11]
    assert sum(part.tokens for part in story.parts) == 4
    assert (await pending.result()).output["finish_reason"] == "stop"


async def test_what_was_not_told_comes_with_the_reply(bench: Bench, session: QueueClient) -> None:
    """The last words; and all of them if the worker was told not to stream."""
    worker = await bench.worker()
    [quiet] = await session.submit("story", ["Tell me"])
    held = await take(bench, worker)
    assert "stream" not in decode_request(held.payload).params
    await worker.settle([(held, ended())])
    assert await Story(quiet).whole() == TEXT
    story = Story(await submit(session))
    held = await take(bench, worker)
    await tell(worker, held, *said()[:2])
    await story.comes_to("Once upon")
    await worker.settle([(held, ended())])
    assert await story.whole() == TEXT


async def test_nothing_is_lost_that_came_before_anybody_asked(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await submit(session)
    held = await take(bench, worker)
    await tell(worker, held, *said())
    await worker.settle([(held, ended())])
    await pending.result()
    story = Story(pending)
    assert await story.whole() == TEXT
    assert len(story.parts) == 1  # what gathered came as one


async def test_many_texts_at_a_time(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await session.submit("story", [f"{n}" for n in range(20)], STREAM)
    stories, jobs = [Story(p) for p in pending], await bench.claimed(worker)
    mine = {job.job: [decode_request(job.payload).input, *WORDS] for job in jobs}
    for n in range(5):
        await worker.send_chunks([(job, said(words=mine[job.job])[n]) for job in jobs])
    await worker.settle([(job, ended("".join(mine[job.job]), 5)) for job in jobs])
    assert [await story.whole() for story in stories] == [f"{n}{TEXT}" for n in range(20)]


async def test_an_error_ends_the_text_and_is_in_the_reply(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await submit(session)
    story, held = Story(pending), await take(bench, worker)
    await tell(worker, held, *said()[:1])
    await worker.settle([(held, encode_reply(Reply(error=JobFailed("no"))))])
    assert await story.whole() == "Once"
    assert type((await pending.result()).error) is JobFailed


async def test_a_large_text_is_whole(bench: Bench, session: QueueClient) -> None:
    """Its reply travels by key."""
    worker = await bench.worker()
    story = Story(await submit(session))
    held = await take(bench, worker)
    await tell(worker, held, *said())
    await worker.settle([(held, ended(TEXT + "!" * 100_000, 5))])
    assert await story.whole() == TEXT + "!" * 100_000


async def test_only_what_generates_has_a_text(bench: Bench, session: QueueClient) -> None:
    await bench.serve("a")
    [pending] = await session.submit("a", ["x"])
    with pytest.raises(InvalidInput, match="does not generate"):
        await anext(pending.stream())


# --- gaps and runs ----------------------------------------------------------------------------------------------------


async def tell_and_trim(bench: Bench, worker: Consumer, held: Claimed, chunk: bytes) -> None:
    """The inbox was so full that it was trimmed before its reader came."""
    pipe = bench.redis.pipeline(transaction=True)
    args = [worker.worker, held.address, held.entry, held.job, held.inbox, chunk]
    pipe.eval(bench.scripts._text("tell"), 1, bench.keys.vfms, *args)
    pipe.xtrim(bench.keys.inbox(held.inbox), maxlen=0, approximate=False)
    assert (await pipe.execute())[0] == [1]


async def test_after_a_trimmed_inbox_the_rest_comes_with_the_reply(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    story = Story(await submit(session))
    held = await take(bench, worker)
    one, two, three, four = said()
    await tell(worker, held, one)
    await story.comes_to("Once")
    await tell_and_trim(bench, worker, held, two)
    await tell(worker, held, three, four)
    await worker.settle([(held, ended())])
    assert await story.whole() == TEXT
    assert [part.text for part in story.parts] == ["Once", " upon a time"]


async def test_even_if_the_reply_was_trimmed_too(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    story = Story(await submit(session))
    held = await take(bench, worker)
    await tell_and_trim(bench, worker, held, said()[0])
    await worker.settle([(held, ended())])
    await bench.redis.xtrim(bench.keys.inbox(held.inbox), maxlen=0)
    assert await story.whole() == TEXT


@pytest.mark.parametrize("marked", [True, False])
async def test_a_job_that_runs_again_the_same_way_goes_on_where_it_was(
    bench: Bench, session: QueueClient, marked: bool
) -> None:
    """Its worker died in a pass, or between two of them: then the delivery was not counted."""
    dead, worker = await bench.worker("dead"), await bench.worker()
    story = Story(await submit(session))
    held = await take(bench, dead)
    await dead.mark([held] if marked else [])
    await tell(dead, held, *said()[:2])
    await story.comes_to("Once upon")
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=3)
    again = await take(bench, worker)
    assert again.attempts == 1 + marked
    for n, chunk in enumerate(said(again.attempts, ["On", "ce u", "pon a", " time"])):
        await tell(worker, again, chunk)
        await story.comes_to(("Once upon", "Once upon", "Once upon a", TEXT)[n])
    await worker.settle([(again, ended())])
    assert await story.whole() == TEXT


@pytest.mark.parametrize("told", [True, False])
async def test_a_job_that_runs_again_and_comes_out_differently(bench: Bench, session: QueueClient, told: bool) -> None:
    """Noticed by its words, or not before its reply; which has the new text."""
    dead, worker = await bench.worker("dead"), await bench.worker()
    pending = await submit(session)
    story, held = Story(pending), await take(bench, dead)
    await dead.mark([held])
    await tell(dead, held, *said()[:2])
    await story.comes_to("Once upon")
    await bench.lapse(dead)
    await worker.reap(10**6, max_attempts=3)
    again = await take(bench, worker)
    if told:
        await tell(worker, again, *said(2, ["Long", " ago"]))
        with pytest.raises(StreamRestarted):
            await story.whole()
    await worker.settle([(again, ended("Long ago", 2))])
    with pytest.raises(StreamRestarted):
        await story.whole()
    assert story.text == "Once upon"
    assert (await pending.result()).output["text"] == "Long ago"


# --- several readers --------------------------------------------------------------------------------------------------


async def test_one_key_one_run_and_every_reader_has_the_text(
    bench: Bench, session: QueueClient, other: QueueClient
) -> None:
    """In one process and in another; who comes late has a gap before it and gets the whole in the end."""
    worker = await bench.worker()
    early = [Story(await submit(s, idempotency_key="k")) for s in (session, session, other)]
    held = await take(bench, worker)
    await tell(worker, held, *said()[:2])
    for story in early:
        await story.comes_to("Once upon")
    late = [Story(await submit(s, idempotency_key="k")) for s in (session, other)]
    await tell(worker, held, *said()[2:])
    for story in early:
        await story.comes_to(TEXT)
    await worker.settle([(held, ended())])
    very_late = [Story(await submit(s, idempotency_key="k")) for s in (session, other)]
    assert {await story.whole() for story in (*early, *late, *very_late)} == {TEXT}
    assert [len(story.parts) for story in (*late, *very_late)] == [1] * 4
    assert await bench.claimed(worker) == []


async def test_a_repeated_call_asks_for_the_same_text(bench: Bench, session: QueueClient, other: QueueClient) -> None:
    """Also where chance decides: its seeds come from its key. Of another call, and of each input, they differ."""
    worker, inputs = await bench.worker(), ["x", "x"]
    for s, key in ((session, "k"), (other, "k"), (other, "l"), (session, None), (session, None)):
        await s.submit("story", inputs, idempotency_key=key)
    jobs = await bench.claimed(worker)
    assert len({decode_request(job.payload).params["seed"] for job in jobs}) == len(jobs) == 8


async def test_a_key_is_not_used_for_another_text(session: QueueClient) -> None:
    await session.submit("story", ["x"], {"seed": 1}, idempotency_key="k")
    with pytest.raises(Conflict):
        await session.submit("story", ["x"], {"seed": 2}, idempotency_key="k")


# --- stopping half way ------------------------------------------------------------------------------------------------


async def test_a_reader_who_stops_cancels_and_the_worker_hears_of_it(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await submit(session)
    held = await take(bench, worker)
    await tell(worker, held, *said()[:1])
    async with aclosing(pending.stream()) as stream:
        async for part in stream:
            assert part.text == "Once"
            break
    assert await pending.cancel() == "told"
    assert (await worker.listen()).cancelled == [f"{held.address} {held.entry}"]
    with pytest.raises(Cancelled):
        await anext(pending.stream())
    await tell(worker, held, *said()[1:])  # words that were on their way do no harm
    await worker.settle([(held, ended())])


async def test_cancelling_ends_a_stream_that_somebody_is_reading(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    pending = await submit(session)
    story, held = Story(pending), await take(bench, worker)
    await tell(worker, held, *said()[:1])
    await story.comes_to("Once")
    await pending.cancel()
    with pytest.raises(Cancelled):
        await story.whole()


async def test_cancelling_the_reader_leaves_the_job_alone(bench: Bench, session: QueueClient) -> None:
    """Whose task it is decides what that means; and who asks again goes on from there."""
    worker = await bench.worker()
    pending = await submit(session)
    story, held = Story(pending), await take(bench, worker)
    await tell(worker, held, *said()[:1])
    await story.comes_to("Once")
    story.reading.cancel()
    await asyncio.wait([story.reading])
    await tell(worker, held, *said()[1:])
    await worker.settle([(held, ended())])
    assert await Story(pending).whole() == " upon a time"


async def test_one_of_two_readers_stops(bench: Bench, session: QueueClient) -> None:
    worker = await bench.worker()
    gone, stays = [await submit(session, idempotency_key="k") for _ in range(2)]
    story, held = Story(stays), await take(bench, worker)
    await tell(worker, held, *said()[:1])
    assert await gone.cancel() == "shared"
    await tell(worker, held, *said()[1:])
    await worker.settle([(held, ended())])
    assert await story.whole() == TEXT


async def test_no_answer_before_the_deadline(
    bench: Bench, session: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_client_module, "_GRACE_S", 0)
    worker = await bench.worker()
    pending = await submit(session)
    story, held = Story(pending), await take(bench, worker)
    await tell(worker, held, said()[0])
    await story.comes_to("Once")
    pending.until = 0.0  # it is over
    await tell(worker, held, said()[1])
    with pytest.raises(DeadlineExceeded):
        await story.whole()
    assert story.text == "Once upon"
    assert (await worker.listen()).cancelled == [f"{held.address} {held.entry}"]


async def test_closing_the_session_ends_all_streams(bench: Bench, session: QueueClient) -> None:
    story = Story(await submit(session))
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(Cancelled):
        await story.whole()


async def test_chunks_that_nobody_can_read_harm_no_other_job(
    bench: Bench, session: QueueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "HEAL_EVERY_S", 3600.0)
    worker = await bench.worker()
    stories = [Story(p) for p in await session.submit("story", ["x", "y"], STREAM)]
    broken, fine = await bench.claimed(worker)
    await worker.send_chunks([(broken, b"\xc1nonsense"), (fine, said()[0])])
    await stories[1].comes_to("Once")
    await worker.settle([(broken, ended()), (fine, ended())])
    assert [await story.whole() for story in stories] == [TEXT, TEXT]
