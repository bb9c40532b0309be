"""Sending calls, and sending them again where that cannot run a job twice: what both clients are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar
from weakref import WeakSet

from fmplex.call import Call
from fmplex.results import AsyncHandle, AsyncTextStream, Result
from fmplex.transport import open_transport
from fmplex_broker.errors import Busy, InvalidInput, Unavailable, VfmClosed

T = TypeVar("T")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0


class Caller:
    """Sends calls over the transport to `url`, at most 1 + `retries` times each; `api_key` and `artifacts` as `open_transport`
    takes them.

    A call carries an idempotency key, so that it does not run twice. Full queues and rate limits are waited out as the fleet
    asks, within the same number of tries. Belongs to one event loop. Raises `InvalidInput` for a URL that is none.
    """

    def __init__(self, url: str, api_key: str | None, artifacts: str | None, retries: int) -> None:
        self.transport = open_transport(url, api_key, artifacts)
        self._retries = retries
        self._streams: WeakSet[AsyncTextStream] = WeakSet()

    async def infer(self, call: Call) -> list[Result]:
        """Run a call; return the results of its inputs in their order. Raises the first typed error among them."""
        _refuse_stream(call)
        return await self._retry(lambda: self.transport.infer(call))

    async def embed(self, call: Call) -> list[list[float]]:
        """Run a call of a vFM that embeds; return one vector an input. Raises `InvalidInput` if the vFM gives none."""
        results = await self.infer(call)
        if results and "embedding" not in results[0].output:
            raise InvalidInput(f"{call.vfm!r} does not give embeddings; use infer", field="vfm")
        return [result.output["embedding"].tolist() for result in results]

    async def enqueue(self, call: Call) -> AsyncHandle:
        """Enqueue the only input of a call and return without waiting for its result."""
        _refuse_stream(call)
        return await self._retry(lambda: self.transport.enqueue(call))

    def stream(self, call: Call) -> AsyncTextStream:
        """Generate a text for the only input of a call. The call is repeated only before the first piece."""
        stream = AsyncTextStream(self._pieces(call))
        self._streams.add(stream)
        return stream

    async def _pieces(self, call: Call) -> AsyncGenerator[str | Result, None]:
        for attempt in range(self._retries + 1):
            begun = False
            try:
                async with aclosing(self.transport.stream(call)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (Unavailable, Busy) as e:
                if begun:
                    raise
                await self._wait_out(e, attempt)

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
        """End the texts that are being read, and close all connections."""
        for stream in list(self._streams):
            await stream.aclose()
        await self.transport.close()


def _refuse_stream(call: Call) -> None:
    """Raise `InvalidInput` for a parameter that would turn one whole output into a stream."""
    if "stream" in call.params:
        raise InvalidInput("this gives whole outputs; `stream` gives a text as it comes", field="stream")
