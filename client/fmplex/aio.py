"""The asynchronous client."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence, Sized
from contextlib import aclosing, contextmanager
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakSet

from rich.progress import Progress

from fmplex.results import AsyncHandle, AsyncTextStream, Result
from fmplex.transport import open_transport
from fmplex.vfms import AsyncVfms
from fmplex_broker.errors import Busy, InvalidInput, Unavailable, VfmClosed

T = TypeVar("T")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0
_PER_CALL = 32  # inputs of a `map` that travel together


class AsyncClient:
    """Speaks to a fleet. `url`: `http://…` (a gateway), or `redis://…`, `unix://…` (straight to the streams).

    Calls are repeated, at most `retries` times, where that cannot run a job twice for the caller: every call carries an
    idempotency key. Full queues and rate limits (429) are waited out as the fleet asks, within the same number of tries.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        artifacts: str | None = None,
        retries: int = 2,
    ) -> None:
        """`artifacts`: the fleet's artifact store, which is needed to deploy straight to the streams."""
        self._transport = open_transport(url, api_key, artifacts)
        self._retries = retries
        self._streams: WeakSet[AsyncTextStream] = WeakSet()
        self.vfms = AsyncVfms(self._transport)

    @overload
    async def infer(
        self,
        vfm: str,
        inputs: list[Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> list[Result]: ...
    @overload
    async def infer(
        self,
        vfm: str,
        inputs: str | dict[str, Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> Result: ...
    async def infer(
        self, vfm: str, inputs: Any, *, timeout: float | None = None, idempotency_key: str | None = None, **params: Any
    ) -> Result | list[Result]:
        """Run one input or a list of them (at most 2,048; use `map` for more). `timeout` in seconds, default: the vFM's.

        `params`: `truncate`, `dimensions`, `top_k`; of a generating vFM those of `GenerationParams` (`max_tokens`, `temperature`,
        `stop`, …). Raises the first typed error among the inputs.
        """
        many = inputs if isinstance(inputs, list) else [inputs]
        _want_whole(params)
        key = idempotency_key or secrets.token_hex(12)
        ms = None if timeout is None else timeout * 1000
        results = await self._retry(lambda: self._transport.infer(vfm, many, params, ms, key))
        return results if isinstance(inputs, list) else results[0]

    async def embed(
        self, vfm: str, texts: Sequence[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        """Vectors of texts, from a vFM with an embedding head."""
        if isinstance(texts, str):
            raise InvalidInput("embed takes a list of texts", field="texts")
        results = await self.infer(vfm, list(texts), timeout=timeout, **params)
        if results and "embedding" not in results[0].output:
            raise InvalidInput(f"{vfm!r} does not give embeddings; use infer", field="vfm")
        return [result.output["embedding"].tolist() for result in results]

    def stream(
        self,
        vfm: str,
        value: str | dict[str, Any],
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> AsyncTextStream:
        """The text of a generating vFM as it comes: `async for piece in client.stream(…)`. `value`: a text, `{"messages": […]}`,
        `{"input_ids": […]}`; `params`: as in `infer`. Raises typed errors as it is read; calls are repeated only before the first
        piece."""
        key = idempotency_key or secrets.token_hex(12)
        ms = None if timeout is None else timeout * 1000
        stream = AsyncTextStream(self._pieces(lambda: self._transport.stream(vfm, value, params, ms, key)))
        self._streams.add(stream)
        return stream

    async def _pieces(
        self, call: Callable[[], AsyncGenerator[str | Result, None]]
    ) -> AsyncGenerator[str | Result, None]:
        for attempt in range(self._retries + 1):
            begun = False
            try:
                async with aclosing(call()) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (Unavailable, Busy) as e:
                if begun:
                    raise
                await self._wait_out(e, attempt)

    async def enqueue(
        self,
        vfm: str,
        value: Any,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        offline: bool = False,
        **params: Any,
    ) -> AsyncHandle:
        """Put one job on the queue and go on. `offline`: from spare capacity (broker URLs only)."""
        _want_whole(params)
        key = idempotency_key or secrets.token_hex(12)
        ms = None if timeout is None else timeout * 1000
        return await self._retry(lambda: self._transport.enqueue(vfm, value, params, ms, key, offline))

    async def map(
        self,
        vfm: str,
        inputs: Iterable[Any],
        *,
        window: int = 256,
        progress: bool = False,
        timeout: float | None = None,
        **params: Any,
    ) -> AsyncIterator[Result]:
        """Results in the order of `inputs`, with at most about `window` of them under way; `progress` draws a bar."""
        plan = MapPlan(inputs, window)
        running: deque[asyncio.Task[list[Result]]] = deque()
        with progress_bar(vfm, plan.total, progress) as advance:
            try:
                while True:
                    while len(running) < plan.calls and (chunk := next(plan.chunks, None)) is not None:
                        running.append(asyncio.ensure_future(self.infer(vfm, chunk, timeout=timeout, **params)))
                    if not running:
                        return
                    for result in await running.popleft():
                        advance()
                        yield result
            finally:
                for left in running:
                    left.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return await call()
            except (Unavailable, Busy) as e:
                await self._wait_out(e, attempt)
        raise AssertionError("unreachable")

    async def _wait_out(self, e: Unavailable | Busy, attempt: int) -> None:
        """Until the next attempt; raises the error if there is none."""
        if attempt == self._retries or isinstance(e, VfmClosed):
            raise e
        await asyncio.sleep(e.retry_after or min(_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S))

    async def close(self) -> None:
        """Texts that are being read end here."""
        for stream in list(self._streams):
            await stream.aclose()
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class MapPlan:
    """How a `map` is cut into calls: `chunks` of inputs, `calls` of them at a time; `total` if it is known."""

    def __init__(self, inputs: Iterable[Any], window: int) -> None:
        if isinstance(inputs, str | dict):
            raise InvalidInput("map takes many inputs: give a list or an iterator", field="inputs")
        if window < 1:
            raise InvalidInput("window must be at least 1", field="window")
        size = min(_PER_CALL, window)
        self.total = len(inputs) if isinstance(inputs, Sized) else None
        self.calls = max(1, window // size)
        self.chunks = _chunks(iter(inputs), size)


def _want_whole(params: dict[str, Any]) -> None:
    if "stream" in params:
        raise InvalidInput("this gives whole outputs; `stream` gives a text as it comes", field="stream")


def _chunks(inputs: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(inputs, size)):
        yield chunk


@contextmanager
def progress_bar(title: str, total: int | None, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar that each call of what it gives moves by one; nothing at all unless `shown`."""
    with Progress(disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
