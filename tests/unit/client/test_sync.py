"""The client for code without an event loop, against a transport that answers from a table."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fmplex.caller
from fmplex import Cancelled, Client, InvalidInput, QueueFull, Result, Unavailable
from fmplex.call import Call
from tests.support.results import made_result


class Echo:
    """Answers with the inputs; `stuck` never answers; `full` refuses that many calls first."""

    def __init__(self) -> None:
        self.full = 0
        self.calls: list[list[Any]] = []
        self.waiting = threading.Event()

    async def infer(self, call: Call) -> list[Result]:
        self.calls.append(list(call.inputs))
        if call.vfm == "stuck":
            self.waiting.set()
            await asyncio.Event().wait()
        if self.full:
            self.full -= 1
            raise QueueFull("full", retry_after=0.01)
        return [made_result(value, call.vfm) for value in call.inputs]

    async def close(self) -> None:
        pass


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    transport = Echo()
    monkeypatch.setattr(fmplex.caller, "open_transport", lambda *_: transport)
    return transport


@pytest.fixture
def client(echo: Echo) -> Iterator[Client]:
    with Client("http://nowhere") as c:
        yield c


def test_one_input_gives_one_result_and_a_list_gives_a_list(client: Client) -> None:
    assert client.infer("a", "x").output == "x"
    assert [r.output for r in client.infer("a", ["x"])] == ["x"]


def test_map_keeps_the_order_and_bounds_what_is_under_way(client: Client, echo: Echo) -> None:
    drawn: list[int] = []

    def inputs() -> Iterator[int]:
        for i in range(500):
            drawn.append(i)
            yield i

    results = client.map("a", inputs(), window=64)
    assert next(results).output == 0
    assert len(drawn) <= 64 + 32
    assert [r.output for r in results] == list(range(1, 500))


def test_a_map_may_feed_another_map(client: Client) -> None:
    doubled = client.map("b", (r.output * 2 for r in client.map("a", range(100))))
    assert [r.output for r in doubled] == [2 * i for i in range(100)]


def test_a_map_that_is_left_early_leaves_nothing_behind(client: Client) -> None:
    for result in client.map("a", range(1000), window=100):
        if result.output == 3:
            break
    assert client.infer("a", "still works").output == "still works"


def test_a_text_is_not_many_inputs(client: Client) -> None:
    with pytest.raises(InvalidInput):
        list(client.map("a", "text"))
    with pytest.raises(InvalidInput):
        client.embed("a", "text")


def test_a_full_queue_is_waited_out_and_only_so_often(client: Client, echo: Echo) -> None:
    echo.full = 2
    assert client.infer("a", "x").output == "x"
    echo.full = 3
    with pytest.raises(QueueFull):
        client.infer("a", "x")


CALLS: dict[str, Callable[[Client], Any]] = {
    "infer": lambda client: client.infer("stuck", "x"),
    "map": lambda client: list(client.map("stuck", ["x", "y"])),
}


@pytest.mark.parametrize("which", CALLS)
def test_closing_ends_the_calls_of_other_threads(echo: Echo, which: str) -> None:
    client = Client("http://nowhere")
    seen: list[Exception] = []

    def call() -> None:
        try:
            CALLS[which](client)
        except Exception as e:
            seen.append(e)

    thread = threading.Thread(target=call)
    thread.start()
    assert echo.waiting.wait(10)
    client.close()
    thread.join(10)
    assert isinstance(seen[0], Cancelled)
    with pytest.raises(Unavailable, match="closed"):
        client.infer("a", "x")
    client.close()  # again is fine
