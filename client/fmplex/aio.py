"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, TypeVar, overload
from weakref import WeakSet

from fmplex.batches import MapPlan, progress_bar
from fmplex.call import make_call
from fmplex.results import AsyncHandle, AsyncTextStream, Result
from fmplex.transport import open_transport
from fmplex.vfms import AsyncVfms
from fmplex_broker.errors import Busy, InvalidInput, Unavailable, VfmClosed

T = TypeVar("T")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0


class AsyncClient:
    """A client of a fleet: runs jobs on its vFMs, and manages the vFMs as `client.vfms`.

    `url`: `http://…` (a gateway), or `redis://…`, `unix://…` (straight to the streams). `api_key`: for a gateway that asks for
    one. `artifacts`: the fleet's artifact store, which is needed to deploy straight to the streams. Raises `InvalidInput` for a
    URL that is neither. Close the client, or use `async with`.

    Calls are repeated, at most `retries` times, where that cannot run a job twice for the caller: every call carries an
    idempotency key. Full queues and rate limits (429) are waited out as the fleet asks, within the same number of tries.

    Every call may raise `Unauthorized`, `UnknownVfm`, `InvalidInput` (with the field at fault), `TextTooLong`, `TooLarge`,
    `Conflict` (the idempotency key was used for another call), `QueueFull`, `RateLimited`, `Unavailable`, `DeadlineExceeded`,
    `JobFailed`, `NonFiniteOutput` or `Poisoned`; all of them are `FmplexError`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        artifacts: str | None = None,
        retries: int = 2,
    ) -> None:
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
        """Run one input, or a list of them, through a vFM; return its result, or a list of results in the same order.

        `inputs`: texts, `{"text": …, "text_pair": …}`, `{"input_ids": […]}`, `{"inputs_embeds": tensor}` or, for a generating
        vFM, `{"messages": […]}`; at most 2,048 of them (use `map` for more). `timeout`: seconds until the deadline, by default
        the vFM's. `idempotency_key`: a call that is repeated with the same key does not run twice; by default a random one.
        `params`: `truncate`, `dimensions`, `top_k`; of a generating vFM those of `GenerationParams` (`max_tokens`,
        `temperature`, `stop`, …). Raises the first typed error among the inputs, see `AsyncClient`.
        """
        _refuse_stream(params)
        many = inputs if isinstance(inputs, list) else [inputs]
        call = make_call(vfm, many, params, timeout, idempotency_key)
        results = await self._retry(lambda: self._transport.infer(call))
        return results if isinstance(inputs, list) else results[0]

    async def embed(
        self, vfm: str, texts: Sequence[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        """Embed texts with a vFM that has an embedding head; return one vector a text, in the same order.

        `timeout` and `params` as in `infer`; `dimensions` shortens the vectors. Raises `InvalidInput` if the vFM gives no
        embeddings, and what `infer` raises.
        """
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
        """Generate a text and read it as it comes: `async for piece in client.stream(…)`.

        `value`: a text, `{"messages": […]}` or `{"input_ids": […]}`; `timeout`, `idempotency_key` and `params` as in `infer`.
        Returns at once; the stream raises typed errors as it is read, `StreamRestarted` among them (a repeated text came out
        differently: send it again). The call is repeated only before the first piece.
        """
        call = make_call(vfm, [value], params, timeout, idempotency_key)
        stream = AsyncTextStream(self._pieces(lambda: self._transport.stream(call)))
        self._streams.add(stream)
        return stream

    async def _pieces(
        self, open_stream: Callable[[], AsyncGenerator[str | Result, None]]
    ) -> AsyncGenerator[str | Result, None]:
        for attempt in range(self._retries + 1):
            begun = False
            try:
                async with aclosing(open_stream()) as pieces:
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
        """Enqueue one job and return its handle without waiting for the result.

        `value` and the rest as in `infer`. `offline`: run it from spare capacity (broker URLs only). Raises what `infer` raises
        on admission; errors of the job itself are raised by `AsyncHandle.result`.
        """
        _refuse_stream(params)
        call = make_call(vfm, [value], params, timeout, idempotency_key, offline=offline)
        return await self._retry(lambda: self._transport.enqueue(call))

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
        """Run any number of inputs through a vFM; yield their results in the same order.

        `inputs` is drawn as results are read: at most about `window` inputs are under way. `progress` draws a bar. `timeout`
        (seconds, for each input) and `params` as in `infer`. Raises what `infer` raises; the inputs under way are cancelled then,
        and when the iterator is closed early.
        """
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

    async def _retry(self, send: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return await send()
            except (Unavailable, Busy) as e:
                await self._wait_out(e, attempt)
        raise AssertionError("unreachable")

    async def _wait_out(self, e: Unavailable | Busy, attempt: int) -> None:
        """Wait until the next attempt; raise the error if there is none."""
        if attempt == self._retries or isinstance(e, VfmClosed):
            raise e
        await asyncio.sleep(e.retry_after or min(_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S))

    async def close(self) -> None:
        """End the texts that are being read, and close all connections. Through a gateway this cancels enqueued jobs."""
        for stream in list(self._streams):
            await stream.aclose()
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


def _refuse_stream(params: dict[str, Any]) -> None:
    """Raise `InvalidInput` for a parameter that would turn one whole output into a stream."""
    if "stream" in params:
        raise InvalidInput("this gives whole outputs; `stream` gives a text as it comes", field="stream")
