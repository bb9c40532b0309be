"""An asynchronous client and event loops: one after the other it serves them all; beside each other, the first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from fmplex import AsyncClient, InvalidInput, Unavailable
from tests.support.gateways import echoing_gateway
from tests.support.hanging import within


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with echoing_gateway() as url:
        yield url


async def ask(client: AsyncClient, text: str) -> str:
    result = await client.infer("v", text)
    return str(result.output["text"])


async def ask_often(client: AsyncClient, text: str) -> str:
    answers = {await ask(client, text) for _ in range(100)}
    (answer,) = answers
    return answer


def test_one_loop_after_the_other(gateway: str) -> None:
    client = AsyncClient(gateway)
    with within(60):
        # So many that each connection of one loop would be met in the next.
        assert [asyncio.run(ask_often(client, text)) for text in "abc"] == ["a", "b", "c"]
        vfms = client.vfms
        assert asyncio.run(ask(client, "d")) == "d"
        assert client.vfms is vfms
        asyncio.run(client.close())
        with pytest.raises(Unavailable, match="closed"):
            asyncio.run(ask(client, "e"))
        asyncio.run(client.close())  # again is fine


def in_another_loop(work: object) -> Exception | None:
    """Run a coroutine in a loop of its own, on a thread, while the test's loop waits; return what it raises."""
    seen: list[Exception] = []

    def run() -> None:
        try:
            asyncio.run(work)  # type: ignore[arg-type]
        except Exception as e:
            seen.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it hangs"
    return seen[0] if seen else None


async def test_a_second_loop_beside_the_first_is_told(gateway: str) -> None:
    async def read(stream: object) -> None:
        await anext(stream)  # type: ignore[call-overload]

    async with AsyncClient(gateway) as client:
        assert await ask(client, "a") == "a"
        job = await client.enqueue("v", "b")
        for work in (ask(client, "c"), client.vfms.list(), client.close(), job.result(), job.cancel()):
            error = in_another_loop(work)
            assert isinstance(error, InvalidInput)
            assert "event loop" in str(error)
        assert (await job.result(30)).output == {"text": "b"}
        assert await ask(client, "d") == "d"


async def test_a_text_is_read_where_it_was_begun(gateway: str) -> None:
    async with AsyncClient(gateway) as client:
        text = client.stream("v", "a")
        with pytest.raises(Unavailable):  # this gateway has none
            await anext(text)
        error = in_another_loop(anext(text, None))
        assert isinstance(error, InvalidInput)
        assert "the text belongs to another event loop" in str(error)


async def test_a_client_that_is_made_in_one_loop_and_used_in_another_belongs_to_that(gateway: str) -> None:
    client = AsyncClient(gateway)

    async def use() -> None:
        assert await ask(client, "a") == "a"
        await client.close()

    assert in_another_loop(use()) is None
