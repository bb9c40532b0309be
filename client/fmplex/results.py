"""Results of calls: whole outputs, handles of enqueued jobs, and texts as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from fmplex_broker.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """The `output` of one input, and the `version` (content digest) of the vFM that gave it."""

    output: Any
    version: str


class AsyncHandle:
    """An enqueued job. It runs whether or not anybody waits for it; through a gateway, until the client is closed.

    `wait` (at most so many seconds) and `cancel`: how the transport does them.
    """

    def __init__(
        self,
        wait: Callable[[float | None], Coroutine[Any, Any, Result]],
        cancel: Callable[[], Coroutine[Any, Any, bool]],
    ):
        self._wait = wait
        self._cancel = cancel

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the result, at most `timeout` seconds.

        Raises `TimeoutError` (the job goes on; ask again), `Cancelled`, or the job's typed error.
        """
        return await self._wait(timeout)

    async def cancel(self) -> bool:
        """Cancel the job; return True if that was before it ran: its `result` raises `Cancelled` then."""
        return await self._cancel()


class Handle:
    """An enqueued job, for code without an event loop. It runs whether or not anybody waits for it; see `AsyncHandle`.

    `run`: how to run what `handle` awaits.
    """

    def __init__(self, handle: AsyncHandle, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._handle = handle
        self._run = run

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result, at most `timeout` seconds.

        Raises `TimeoutError` (the job goes on; ask again), `Cancelled`, or the job's typed error.
        """
        result: Result = self._run(self._handle.result(timeout))
        return result

    def cancel(self) -> bool:
        """Cancel the job; return True if that was before it ran: its `result` raises `Cancelled` then."""
        return bool(self._run(self._handle.cancel()))


class AsyncTextStream(AsyncIterator[str]):
    """A text as it comes: iterate for its pieces. When they have ended, `result` has the whole output: the text, why it ended,
    and its tokens; until then it is None.

    Close a text that is left early (`aclose`, or the end of `async with`): that cancels the job. `pieces`: of the text; the
    result comes last.
    """

    def __init__(self, pieces: AsyncGenerator[str | Result, None]) -> None:
        self._pieces = pieces
        self.result: Result | None = None

    async def __anext__(self) -> str:
        async for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self.result = piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading; cancel the job if its text has not ended."""
        with suppress(RuntimeError):  # somebody reads it at this moment, and gets the error that ends it
            await self._pieces.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class TextStream(Iterator[str]):
    """A text as it comes, for code without an event loop: iterate for its pieces.

    Close a text that is left early (`close`, or the end of `with`): that cancels the job. `run`: how to run what `stream` awaits.
    """

    def __init__(self, stream: AsyncTextStream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    @property
    def result(self) -> Result | None:
        """The whole output once the pieces have ended, None until then; see `AsyncTextStream`."""
        return self._stream.result

    def __next__(self) -> str:
        piece: str | None = self._run(self._next())
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> str | None:
        return await anext(self._stream, None)

    def close(self) -> None:
        """Stop reading; cancel the job if its text has not ended."""
        with suppress(Unavailable):  # the client is closed: so is this
            self._run(self._stream.aclose())

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def wait_task(task: asyncio.Task[T], timeout: float | None) -> T:
    """Return a task's result. Raises `TimeoutError` after `timeout` seconds, without cancelling the task."""
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        raise TimeoutError(f"no result within {timeout} s; the job goes on")
    return task.result()
