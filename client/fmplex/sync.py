"""The client for code without an event loop: the asynchronous one, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, TypeVar, overload

from fmplex.aio import AsyncClient, MapPlan, progress_bar
from fmplex.results import Handle, Result, TextStream
from fmplex.vfms import Vfms
from fmplex_broker.errors import Cancelled, Unavailable

T = TypeVar("T")


class Client:
    """Speaks to a fleet; see `AsyncClient` for what each call means. Safe to use from many threads. Close it, or use `with`."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        artifacts: str | None = None,
        retries: int = 2,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fmplex-client", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self._client = self._run(self._open(url, api_key, artifacts, retries))
        except BaseException:
            self._end()
            raise
        self.vfms = Vfms(self._client.vfms, self._run)

    @staticmethod
    async def _open(url: str, api_key: str | None, artifacts: str | None, retries: int) -> AsyncClient:
        return AsyncClient(url, api_key=api_key, artifacts=artifacts, retries=retries)

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._closed:
            work.close()
            raise Unavailable("this client is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        try:
            return future.result()
        except CancelledError:
            raise Cancelled("the client was closed while this call was under way") from None
        except BaseException:
            future.cancel()  # Ctrl-C here takes the job back there
            raise

    @overload
    def infer(
        self,
        vfm: str,
        inputs: list[Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> list[Result]: ...
    @overload
    def infer(
        self,
        vfm: str,
        inputs: str | dict[str, Any],
        *,
        timeout: float | None = ...,
        idempotency_key: str | None = ...,
        **params: Any,
    ) -> Result: ...
    def infer(
        self, vfm: str, inputs: Any, *, timeout: float | None = None, idempotency_key: str | None = None, **params: Any
    ) -> Result | list[Result]:
        got: Result | list[Result] = self._run(
            self._client.infer(vfm, inputs, timeout=timeout, idempotency_key=idempotency_key, **params)
        )
        return got

    def embed(
        self, vfm: str, texts: Sequence[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        return self._run(self._client.embed(vfm, texts, timeout=timeout, **params))

    def stream(
        self,
        vfm: str,
        value: str | dict[str, Any],
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> TextStream:
        stream = self._client.stream(vfm, value, timeout=timeout, idempotency_key=idempotency_key, **params)
        return TextStream(stream, self._run)

    def enqueue(
        self,
        vfm: str,
        value: Any,
        *,
        timeout: float | None = None,
        idempotency_key: str | None = None,
        offline: bool = False,
        **params: Any,
    ) -> Handle:
        work = self._client.enqueue(
            vfm, value, timeout=timeout, idempotency_key=idempotency_key, offline=offline, **params
        )
        return Handle(self._run(work), self._run)

    def map(
        self,
        vfm: str,
        inputs: Iterable[Any],
        *,
        window: int = 256,
        progress: bool = False,
        timeout: float | None = None,
        **params: Any,
    ) -> Iterator[Result]:
        # The inputs are drawn here, not on the loop: they may be slow, or come from another `map` of this client.
        plan = MapPlan(inputs, window)
        running: deque[Future[list[Result]]] = deque()
        with progress_bar(vfm, plan.total, progress) as advance:
            try:
                while True:
                    while len(running) < plan.calls and (chunk := next(plan.chunks, None)) is not None:
                        running.append(self._submit(self._client.infer(vfm, chunk, timeout=timeout, **params)))
                    if not running:
                        return
                    for result in running.popleft().result():
                        advance()
                        yield result
            finally:
                for left in running:
                    left.cancel()

    def close(self) -> None:
        """Ends what is under way: calls of other threads are cancelled there."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._wind_up(), self._loop).result()
            self._end()

    async def _wind_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
