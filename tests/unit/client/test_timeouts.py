"""Time-outs of calls: what is no time is refused, and what is one holds, whatever the other side does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import pytest

import fmplex.caller
from fmplex import AsyncClient, Client, DeadlineExceeded, InvalidInput, QueueFull, Result, Unavailable
from fmplex.call import Call
from tests.support.gateways import echoing_gateway, silent_host, unreachable_host
from tests.support.results import made_result

CALLS: dict[str, Callable[..., Any]] = {
    "infer": lambda client, **options: client.infer("v", "x", **options),
    "embed": lambda client, **options: client.embed("v", ["x"], **options),
    "enqueue": lambda client, **options: client.enqueue("v", "x", **options).result(),
    "stream": lambda client, **options: list(client.stream("v", "x", **options)),
    "map": lambda client, **options: list(client.map("v", ["x"], **options)),
}
NO_TIMES = [float("nan"), float("inf"), float("-inf"), 0, -1, 1e-9, 86_401, "5", True, [1], Decimal("NaN"), np.nan]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with echoing_gateway() as url:
        yield url


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("timeout", NO_TIMES, ids=repr)
def test_what_is_no_time_is_refused(gateway: str, call: str, timeout: Any) -> None:
    with Client(gateway) as client, pytest.raises(InvalidInput, match="seconds") as caught:
        CALLS[call](client, timeout=timeout)
    assert caught.value.field == "timeout"


@pytest.mark.parametrize("timeout", [30, 0.5, np.float32(30), np.int64(30), Fraction(61, 2), 86_400, None], ids=repr)
async def test_a_time_is_any_number_of_seconds(gateway: str, timeout: Any) -> None:
    async with AsyncClient(gateway) as client:
        assert (await client.infer("v", "x", timeout=timeout)).output == {"text": "x"}
        handle = await client.enqueue("v", "x")
        assert (await handle.result(timeout=timeout)).output == {"text": "x"}


async def test_the_wait_for_a_handle_is_checked_too(gateway: str) -> None:
    async with AsyncClient(gateway) as client:
        handle = await client.enqueue("v", "x")
        for timeout in (float("nan"), "5", True):
            with pytest.raises(InvalidInput, match="seconds"):
                await handle.result(timeout=timeout)  # type: ignore[arg-type]
        assert (await handle.result(timeout=float("inf"))).output == {"text": "x"}
        assert (await handle.result(timeout=-1)).output == {"text": "x"}, "it is there already"


@pytest.mark.parametrize("retries", [-1, 1.5, "2", None, True, float("nan")])
def test_retries_are_checked(retries: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        Client("http://nowhere", retries=retries)
    assert caught.value.field == "retries"


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < seconds, "it waits for much longer than it was told to"


# With all its tries a call may take its time, a few seconds for the other side's own word on it, and what a busy machine takes.
@pytest.mark.parametrize(
    ("scheme", "call"),
    [*(("http", call) for call in CALLS), *((s, c) for s in ("https", "redis") for c in ("infer", "stream"))],
)
def test_a_host_that_says_nothing_takes_no_more_than_the_calls_time(scheme: str, call: str) -> None:
    with silent_host() as host, Client(f"{scheme}://{host}") as client:
        with ends_within(10), pytest.raises(DeadlineExceeded) as caught:
            CALLS[call](client, timeout=0.3)
        assert caught.value.message


@pytest.mark.parametrize("scheme", ["http", "https", "redis"])
@pytest.mark.parametrize("call", ["infer", "enqueue", "stream"])
def test_nor_does_one_that_cannot_be_reached(scheme: str, call: str) -> None:
    with (
        unreachable_host() as host,
        Client(f"{scheme}://{host}") as client,
        ends_within(10),
        pytest.raises((DeadlineExceeded, Unavailable)),
    ):
        CALLS[call](client, timeout=0.3)


class Refusing:
    """Refuses so many calls, and notes the time that each has."""

    def __init__(self, error: Exception) -> None:
        self.error, self.refusals = error, 1
        self.times: list[float | None] = []

    async def infer(self, call: Call) -> list[Result]:
        self.times.append(call.timeout_ms)
        if len(self.times) <= self.refusals:
            raise self.error
        return [made_result(value) for value in call.inputs]

    async def close(self) -> None:
        pass


async def test_a_repeated_call_has_what_is_left_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Refusing(QueueFull("full", retry_after=0.05))
    monkeypatch.setattr(fmplex.caller, "open_transport", lambda *_: transport)
    async with AsyncClient("http://nowhere") as client:
        await client.infer("v", "x", timeout=60)
        first, second = transport.times
        assert first is not None
        assert second is not None
        assert 50_000 < second <= first - 50 <= 60_000 - 50
        transport.times.clear()
        await client.infer("v", "x")
        assert transport.times == [None, None]


async def test_nobody_waits_for_a_try_that_would_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Refusing(QueueFull("full", retry_after=3600))
    monkeypatch.setattr(fmplex.caller, "open_transport", lambda *_: transport)
    async with AsyncClient("http://nowhere") as client:
        with ends_within(30), pytest.raises(QueueFull):
            await client.infer("v", "x", timeout=60)
    assert len(transport.times) == 1


async def test_a_call_without_a_time_waits_for_the_vfms(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    real = httpx.AsyncClient.send

    async def send(self: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return await real(self, request, **options)

    monkeypatch.setattr(httpx.AsyncClient, "send", send)
    async with AsyncClient(gateway) as client:
        await client.infer("v", "x")
        await client.infer("v", "x", timeout=2)
    assert (seen[0]["connect"], seen[1]["connect"] <= 2) == (5.0, True)
    assert seen[0]["read"] > 80_000
    assert 2 < seen[1]["read"] < 10
