"""Texts as they come, in both clients, against a transport that tells them from a table."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import pytest

import fmplex.caller
from fmplex import AsyncClient, Client, InvalidInput, QueueFull, Result, Unavailable, VfmClosed
from fmplex.call import Call
from tests.support.results import made_result

TEXT = made_result({"text": "one two"})


class ChunkSender:
    """Tells `one`, ` two` and the result. vFMs: `stuck` tells nothing after the first piece; `fails` breaks after it; the first
    `refusals` calls are refused with `refusal`."""

    def __init__(self) -> None:
        self.refusal: Exception = QueueFull("full", retry_after=0.01)
        self.refusals = 0
        self.keys: list[str] = []
        self.params: Mapping[str, Any] = {}
        self.taken_back = threading.Event()

    async def stream(self, call: Call) -> AsyncGenerator[str | Result, None]:
        self.keys.append(call.idempotency_key)
        self.params = call.params
        if self.refusals:
            self.refusals -= 1
            raise self.refusal
        try:
            yield "one"
            if call.vfm == "stuck":
                await asyncio.Event().wait()
            if call.vfm == "fails":
                raise Unavailable("gone")
            yield " two"
        except (GeneratorExit, asyncio.CancelledError):
            self.taken_back.set()
            raise
        yield TEXT

    async def close(self) -> None:
        pass


@pytest.fixture
def teller(monkeypatch: pytest.MonkeyPatch) -> ChunkSender:
    transport = ChunkSender()
    monkeypatch.setattr(fmplex.caller, "open_transport", lambda *_: transport)
    return transport


@pytest.fixture
def client(teller: ChunkSender) -> Iterator[Client]:
    with Client("http://nowhere") as c:
        yield c


def test_pieces_come_in_order_and_then_there_is_a_result(client: Client, teller: ChunkSender) -> None:
    stream = client.stream("a", "x", temperature=0)
    assert stream.result is None
    assert list(stream) == ["one", " two"]
    assert stream.result == TEXT
    assert list(stream) == [], "it has ended, and stays ended"
    assert teller.params == {"temperature": 0}


async def test_the_same_with_await(teller: ChunkSender) -> None:
    async with AsyncClient("http://nowhere") as client:
        stream = client.stream("a", "x")
        assert [piece async for piece in stream] == ["one", " two"]
        assert stream.result == TEXT


def test_a_full_queue_is_waited_out_before_the_first_piece(client: Client, teller: ChunkSender) -> None:
    teller.refusals = 2
    assert list(client.stream("a", "x")) == ["one", " two"]
    assert len(set(teller.keys)) == 1, "a repeated call must not run twice"
    teller.refusals = 3
    with pytest.raises(QueueFull):
        next(client.stream("a", "x"))


def test_what_cannot_get_better_is_not_repeated(client: Client, teller: ChunkSender) -> None:
    teller.refusals, teller.refusal = 3, VfmClosed("closed")
    with pytest.raises(VfmClosed):
        next(client.stream("a", "x"))
    assert teller.refusals == 2


def test_after_the_first_piece_nothing_is_repeated(client: Client, teller: ChunkSender) -> None:
    stream = client.stream("fails", "x")
    assert next(stream) == "one"
    with pytest.raises(Unavailable):
        next(stream)
    assert len(teller.keys) == 1
    assert stream.result is None


def test_leaving_early_takes_the_job_back(client: Client, teller: ChunkSender) -> None:
    with client.stream("a", "x") as stream:
        assert next(stream) == "one"
    assert teller.taken_back.is_set()
    assert list(stream) == []


async def test_leaving_early_takes_the_job_back_with_await(teller: ChunkSender) -> None:
    async with AsyncClient("http://nowhere") as client:
        async with client.stream("a", "x") as stream:
            assert await anext(stream) == "one"
        assert teller.taken_back.is_set()


def test_closing_the_client_ends_its_streams(teller: ChunkSender) -> None:
    client = Client("http://nowhere")
    idle = client.stream("a", "x")
    assert next(idle) == "one"
    client.close()
    assert teller.taken_back.is_set()
    with pytest.raises(Unavailable, match="closed"):
        next(idle)
    idle.close()  # again is fine


def test_closing_the_client_ends_a_read_of_another_thread(teller: ChunkSender) -> None:
    client = Client("http://nowhere")
    stream = client.stream("stuck", "x")
    assert next(stream) == "one"
    seen: list[Exception] = []
    begun = threading.Event()

    def read() -> None:
        begun.set()
        try:
            next(stream)
        except Exception as e:
            seen.append(e)

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(10)
    client.close()
    thread.join(10)
    assert not thread.is_alive()
    assert teller.taken_back.is_set()
    assert len(seen) == 1


def test_streaming_has_a_call_of_its_own(client: Client) -> None:
    with pytest.raises(InvalidInput, match="`stream` gives a text as it comes"):
        client.infer("a", "x", stream=True)
    with pytest.raises(InvalidInput, match="`stream` gives a text as it comes"):
        client.enqueue("a", "x", stream=True)
