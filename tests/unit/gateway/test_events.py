"""Server-sent events: when they begin, how they end, and that nothing goes on for a client that has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.types import Message

import fmplex_gateway.events
from fmplex_broker.errors import DeadlineExceeded, QueueFull
from fmplex_broker.wire.messages import Reply
from fmplex_broker.wire.streaming import Delta
from fmplex_gateway.events import EventStream, follow

Values = AsyncGenerator[dict[str, Any], None]
SCOPE = {"type": "http", "method": "POST", "path": "/"}


class Client:
    """What uvicorn would be: hangs up when told to; takes `room` messages and then keeps the sender waiting."""

    def __init__(self, room: int = 1000) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.full = asyncio.Event()
        self._room = room

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) >= self._room:
            self.full.set()
            await asyncio.Event().wait()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def events(self) -> list[Any]:
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "", "every event ends with an empty line"
        data = [block.removeprefix("data: ") for block in blocks]
        return [json.loads(d) if d != "[DONE]" else d for d in data]


async def run(values: Values, client: Client) -> None:
    async with asyncio.timeout(10):
        await EventStream(values)(SCOPE, client.receive, client.send)


async def test_values_come_one_by_one_and_done_comes_last() -> None:
    async def values() -> Values:
        yield {"text": "a\n\nb"}
        yield {"text": "é"}

    client = Client()
    await run(values(), client)
    assert client.status == 200
    assert (b"content-type", b"text/event-stream; charset=utf-8") in client.sent[0]["headers"]
    assert client.events == [{"text": "a\n\nb"}, {"text": "é"}, "[DONE]"]
    assert [message.get("more_body", True) for message in client.sent] == [True, True, True, False]


async def test_an_error_before_the_first_value_is_an_ordinary_reply() -> None:
    async def values() -> Values:
        raise QueueFull("full", retry_after=3)
        yield {}

    client = Client()
    await run(values(), client)
    assert client.status == 429
    assert (b"retry-after", b"3") in client.sent[0]["headers"]
    assert json.loads(client.body)["error"]["code"] == "queue_full"


@pytest.mark.parametrize(
    ("error", "code"), [(DeadlineExceeded("too late"), "deadline_exceeded"), (RuntimeError("a bug"), "internal")]
)
async def test_a_later_error_is_the_last_event(error: Exception, code: str) -> None:
    async def values() -> Values:
        yield {"text": "a"}
        raise error

    client = Client()
    await run(values(), client)
    first, last = client.events
    assert first == {"text": "a"}
    assert last["error"]["code"] == code
    assert client.sent[-1]["more_body"] is False
    assert b"a bug" not in client.body


@pytest.mark.parametrize("when", ["before the first value", "between two values", "while it reads slowly"])
async def test_values_are_closed_as_soon_as_the_client_hangs_up(when: str) -> None:
    closed = asyncio.Event()
    waiting = asyncio.Event()

    async def values() -> Values:
        try:
            if when != "before the first value":
                yield {"text": "a"}
            if when != "while it reads slowly":
                waiting.set()
                await asyncio.Event().wait()
            yield {"text": "b"}
        finally:
            await asyncio.sleep(0)  # closing may take its time
            closed.set()

    client = Client(room=2 if when == "while it reads slowly" else 1000)
    running = asyncio.ensure_future(run(values(), client))
    await (client.full if when == "while it reads slowly" else waiting).wait()
    client.gone.set()
    await running
    assert closed.is_set()
    assert (client.status == 499) == (when == "before the first value")
    assert "[DONE]" not in client.body.decode()


# ---- texts that grow at once ----


class Growing:
    """A `Pending` that tells `parts`, and then has a reply; `hold` keeps it from going on."""

    def __init__(self, *parts: str, error: Exception | None = None, hold: bool = False) -> None:
        self._parts, self._error, self._hold = parts, error, hold
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.told = 0

    async def stream(self) -> AsyncGenerator[Delta, None]:
        at = 0
        for i, part in enumerate(self._parts):
            self.told = i + 1
            yield Delta(at, part, i, 1)
            at += len(part)
        if self._error is not None:
            raise self._error
        if self._hold:
            await asyncio.Event().wait()
        self.future.set_result(Reply(output="".join(self._parts)))

    async def reply(self) -> Reply:
        return await self.future


@pytest.fixture
def taken_back(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Jobs without an answer that were cancelled."""
    jobs: list[Any] = []

    async def cancel_all(pending: list[Growing]) -> None:
        jobs.extend(p for p in pending if not p.future.done())

    monkeypatch.setattr(fmplex_gateway.events, "cancel_all", cancel_all)
    return jobs


Followed = Callable[..., AsyncGenerator[tuple[int, Delta | Reply], None]]
followed: Followed = follow  # type: ignore[assignment]


async def test_each_text_comes_in_order_with_its_reply_last(taken_back: list[Any]) -> None:
    got: dict[int, list[Any]] = {0: [], 1: []}
    async for at, what in followed([Growing("a", "b"), Growing("c")]):
        got[at].append(what.text if isinstance(what, Delta) else what.output)
    assert got == {0: ["a", "b", "ab"], 1: ["c", "c"]}
    assert taken_back == []


async def test_one_that_fails_ends_all_and_takes_the_others_back(taken_back: list[Any]) -> None:
    other = Growing("c", hold=True)
    with pytest.raises(DeadlineExceeded):
        async for _ in followed([Growing("a", error=DeadlineExceeded("late")), other]):
            pass
    assert other in taken_back


async def test_closing_early_takes_back_what_has_not_ended(taken_back: list[Any]) -> None:
    jobs = [Growing("a"), Growing("b", hold=True)]
    coming = followed(jobs)
    seen = []
    while not any(isinstance(what, Reply) for _, what in seen):
        seen.append(await anext(coming))
    await coming.aclose()
    assert taken_back == [jobs[1]]


async def test_what_nobody_reads_is_not_gathered_here(taken_back: list[Any]) -> None:
    job = Growing(*"abcdefghij")
    coming = followed([job])
    await anext(coming)
    for _ in range(100):
        await asyncio.sleep(0)
    assert job.told <= 4
    await coming.aclose()
