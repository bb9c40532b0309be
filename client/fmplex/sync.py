"""The client for code without an event loop: the asynchronous one, on a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, TypeVar, overload

from fmplex.aio import AsyncClient
from fmplex.batches import MapPlan, progress_bar
from fmplex.results import Handle, Result, TextStream
from fmplex.vfms import Vfms
from fmplex_broker.errors import Cancelled, Unavailable

T = TypeVar("T")


class Client:
    """A client of a fleet for code without an event loop: runs jobs on its vFMs, and manages the vFMs as `client.vfms`.

    `url`: `http://…` (a gateway), or `redis://…`, `unix://…` (straight to the streams). `api_key`: for a gateway that asks for
    one. `artifacts`: the fleet's artifact store, which is needed to deploy straight to the streams. `retries`: how often a call
    is repeated at most, where that cannot run a job twice for the caller. Raises `InvalidInput` for a URL that is neither.

    Safe to use from many threads. Close it, or use `with`; a closed client raises `Unavailable`. See `AsyncClient` for the typed
    errors that every call may raise.
    """

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
            self._stop_loop()
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
        """Run one input, or a list of them, through a vFM; return its result, or a list of results in the same order.

        `inputs`: texts, `{"text": …, "text_pair": …}`, `{"input_ids": […]}` or `{"messages": […]}`, at most 2,048 (use `map` for
        more). `timeout`: seconds until the deadline, by default the vFM's. `params`: of the vFM's head, as `truncate`, `top_k` or
        `max_tokens`. Raises the first typed error among the inputs; `Cancelled` if another thread closes the client meanwhile.
        See `AsyncClient.infer`.
        """
        results: Result | list[Result] = self._run(
            self._client.infer(vfm, inputs, timeout=timeout, idempotency_key=idempotency_key, **params)
        )
        return results

    def embed(
        self, vfm: str, texts: Sequence[str], *, timeout: float | None = None, **params: Any
    ) -> list[list[float]]:
        """Embed texts with a vFM that has an embedding head; return one vector a text. See `AsyncClient.embed`."""
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
        """Generate a text and read it as it comes: `for piece in client.stream(…)`.

        `value`: a text, `{"messages": […]}` or `{"input_ids": […]}`; the rest as in `infer`. Returns at once; the stream raises
        typed errors as it is read. See `AsyncClient.stream`.
        """
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
        """Enqueue one job and return its handle without waiting for the result.

        `value` and the rest as in `infer`. `offline`: run it from spare capacity (broker URLs only). Raises what `infer` raises
        on admission; errors of the job itself are raised by `Handle.result`. See `AsyncClient.enqueue`.
        """
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
        """Run any number of inputs through a vFM; yield their results in the same order.

        `inputs` is drawn, in the caller's thread, as results are read: at most about `window` inputs are under way. `progress`
        draws a bar. `timeout` (seconds, for each input) and `params` as in `infer`. See `AsyncClient.map`.
        """
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
        """Close all connections and cancel what is under way: calls of other threads raise `Cancelled` there."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(self._close_all(), self._loop).result()
            self._stop_loop()

    async def _close_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
