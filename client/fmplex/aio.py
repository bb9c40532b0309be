"""The asynchronous client."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sized
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

from rich.progress import Progress

from fmplex.results import AsyncHandle, Result
from fmplex.transport import Transport, open_transport
from fmplex_broker.admission import MAX_INPUTS
from fmplex_broker.errors import Busy, Unavailable, VfmClosed
from fmplex_broker.specs import VfmChange, VfmSpec, parse

T = TypeVar("T")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.2, 5.0
_PER_CALL = 32  # inputs of a `map` that travel together


class AsyncClient:
    """Speaks to a fleet. `url`: `http://…` (a gateway), or `redis://…`, `unix://…` (straight to the streams).

    Calls are repeated, at most `retries` times, where that cannot run a job twice for the caller: every call carries an
    idempotency key. Full queues and rate limits (429) are waited out as the fleet asks, within the same number of tries.
    """

    def __init__(self, url: str = "http://127.0.0.1:8080", *, api_key: str | None = None, retries: int = 2) -> None:
        self._transport = open_transport(url, api_key)
        self._retries = retries
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

        `params`: `truncate`, `dimensions`, `top_k`. Raises the first typed error among the inputs.
        """
        many = inputs if isinstance(inputs, list) else [inputs]
        key = idempotency_key or secrets.token_hex(12)
        ms = None if timeout is None else timeout * 1000
        results = await self._retry(lambda: self._transport.infer(vfm, many, params, ms, key))
        return results if isinstance(inputs, list) else results[0]

    async def embed(
        self, vfm: str, texts: list[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        """Vectors of texts, from a vFM with an embedding head."""
        return [r.output["embedding"].tolist() for r in await self.infer(vfm, list(texts), timeout=timeout, **params)]

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
        key = idempotency_key or secrets.token_hex(12)
        ms = None if timeout is None else timeout * 1000
        return await self._retry(lambda: self._transport.enqueue(vfm, value, params, ms, key, offline))

    async def map(
        self, vfm: str, inputs: Iterable[Any], *, window: int = 256, progress: bool = False, timeout: float | None = None,
        **params: Any,
    ) -> AsyncIterator[Result]:  # fmt: skip
        """Results in the order of `inputs`, with at most about `window` of them under way; `progress` draws a bar."""
        per_call = max(1, min(_PER_CALL, window, MAX_INPUTS))
        total = len(inputs) if isinstance(inputs, Sized) else None
        chunks = _chunks(inputs, per_call)
        running: deque[asyncio.Task[list[Result]]] = deque()
        with Progress(disable=not progress) as bar:
            task = bar.add_task(vfm, total=total)
            try:
                while True:
                    while len(running) * per_call < max(window, 1) and (chunk := next(chunks, None)) is not None:
                        running.append(asyncio.create_task(self._chunk(vfm, chunk, timeout, params)))
                    if not running:
                        return
                    for result in await running.popleft():
                        bar.advance(task)
                        yield result
            finally:
                for left in running:
                    left.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _chunk(self, vfm: str, chunk: list[Any], timeout: float | None, params: dict[str, Any]) -> list[Result]:
        return await self.infer(vfm, chunk, timeout=timeout, **params)

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(self._retries + 1):
            try:
                return await call()
            except (Unavailable, Busy) as e:
                if attempt == self._retries or isinstance(e, VfmClosed):
                    raise
                await asyncio.sleep(e.retry_after or min(_BACKOFF_S * 2**attempt, _LONGEST_BACKOFF_S))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()


class AsyncVfms:
    """The life of vFMs: `client.vfms`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def deploy(self, package: str | Path | VfmSpec | dict[str, Any]) -> dict[str, Any]:
        """A package folder, or the spec of a vFM without files. Returns once it serves; raises why it cannot."""
        if isinstance(package, str | Path):
            return await self._transport.deploy(Path(package), None)
        spec = package if isinstance(package, VfmSpec) else parse(VfmSpec, package)
        return await self._transport.deploy(None, spec)

    async def list(self) -> list[dict[str, Any]]:
        return await self._transport.list()

    async def show(self, name: str) -> dict[str, Any]:
        return await self._transport.show(name)

    async def update(self, name: str, **change: Any) -> dict[str, Any]:
        """`weight`, `limits`, `slo` (mappings or specs) take effect at once; `package` (a folder) makes a new version."""
        if "package" in change:
            change["package"] = str(Path(change["package"]).resolve())
        return await self._transport.update(name, parse(VfmChange, change))

    async def remove(self, name: str) -> None:
        await self._transport.remove(name)


def _chunks(inputs: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in inputs:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
