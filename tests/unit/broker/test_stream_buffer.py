"""A reader of a growing text: how slow it may be, and how it hears of the end."""

from __future__ import annotations

import asyncio

import pytest

from fmplex_broker.errors import JobFailed, StreamRestarted
from fmplex_broker.streams.stream_buffer import StreamBuffer
from fmplex_broker.wire.messages import Reply, packb
from fmplex_broker.wire.streaming import Chunk, Delta, encode_chunk

SOON_S = 5.0


def chunk(number: int, at: int, text: str, attempt: int = 1) -> bytes:
    """One of one token."""
    return encode_chunk(Chunk(attempt, number, Delta(at, text, number - 1, 1, [{"id": number}])))


def reply_with(text: str, tokens: int) -> Reply:
    return Reply({"text": text, "completion_tokens": tokens, "logprobs": [{"id": n + 1} for n in range(tokens)]})


@pytest.fixture
async def reply() -> asyncio.Future[Reply]:
    return asyncio.get_running_loop().create_future()


async def test_each_part_as_soon_as_it_comes(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    for number, text in enumerate("abc", 1):
        asking = asyncio.create_task(buffer.next(reply, SOON_S))
        await asyncio.sleep(0)
        assert not asking.done()
        buffer.feed(chunk(number, number - 1, text))
        assert await asking == Delta(number - 1, text, number - 1, 1, [{"id": number}])


async def test_a_slow_reader_is_given_what_gathered_as_one(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    for number in range(1, 1001):
        buffer.feed(chunk(number, number - 1, "x"))
    part = await buffer.next(reply, SOON_S)
    assert part == Delta(0, "x" * 1000, 0, 1000, [{"id": n} for n in range(1, 1001)])


async def test_it_ends_with_the_reply_and_what_is_missing_is_in_that(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    buffer.feed(chunk(1, 0, "a"))
    asking = asyncio.create_task(buffer.next(reply, SOON_S))
    assert (await asking or Delta(0, "")).text == "a"
    asking = asyncio.create_task(buffer.next(reply, SOON_S))
    await asyncio.sleep(0)
    reply.set_result(reply_with("abc", 3))
    assert await asking is None
    assert buffer.rest(reply.result()) == Delta(1, "bc", 1, 2, [{"id": 2}, {"id": 3}])
    assert buffer.rest(reply.result()) is None


async def test_what_was_told_before_the_reply_is_given_first(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    buffer.feed(chunk(1, 0, "a"))
    reply.set_result(reply_with("ab", 2))
    assert (await buffer.next(reply, SOON_S) or Delta(0, "")).text == "a"
    assert await buffer.next(reply, SOON_S) is None


async def test_an_error_is_the_end_too(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    buffer.feed(chunk(1, 0, "a"))
    reply.set_result(Reply(error=JobFailed("no")))
    assert await buffer.next(reply, SOON_S) is not None
    assert await buffer.next(reply, SOON_S) is None
    assert buffer.rest(reply.result()) is None


async def test_nobody_waits_longer_than_asked(reply: asyncio.Future[Reply]) -> None:
    assert await StreamBuffer().next(reply, 0.001) is None


async def test_a_cancelled_job_ends_it(reply: asyncio.Future[Reply]) -> None:
    asking = asyncio.create_task(StreamBuffer().next(reply, SOON_S))
    await asyncio.sleep(0)
    reply.cancel()
    assert await asking is None


async def test_a_reader_who_gives_up_leaves_nothing_behind(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    asking = asyncio.create_task(buffer.next(reply, SOON_S))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not reply._callbacks
    buffer.feed(chunk(1, 0, "a"))
    assert await buffer.next(reply, SOON_S) is not None  # and may come back


async def test_a_text_that_starts_differently_ends_it_after_what_was_good(reply: asyncio.Future[Reply]) -> None:
    buffer = StreamBuffer()
    for payload in (chunk(1, 0, "a"), chunk(1, 0, "b", attempt=2), chunk(2, 1, "c", attempt=2)):
        buffer.feed(payload)
    assert (await buffer.next(reply, SOON_S) or Delta(0, "")).text == "a"
    for _ in range(2):
        with pytest.raises(StreamRestarted):
            await buffer.next(reply, SOON_S)


@pytest.mark.parametrize("bad", [b"", b"\xc1", packb([2, 1]), packb([1, "x", None, 0, 0, 0, 0, 0])])
async def test_a_chunk_that_cannot_be_read_is_a_gap(reply: asyncio.Future[Reply], bad: bytes) -> None:
    """From a worker of another version: nothing else may be lost with it."""
    buffer = StreamBuffer()
    for payload in (chunk(1, 0, "a"), bad, chunk(3, 2, "c")):
        buffer.feed(payload)
    assert (await buffer.next(reply, SOON_S) or Delta(0, "")).text == "a"
    reply.set_result(reply_with("abc", 3))
    assert await buffer.next(reply, SOON_S) is None
    assert buffer.rest(reply.result()) == Delta(1, "bc", 1, 2, [{"id": 2}, {"id": 3}])
