"""What a call gives back."""

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
    """One output, and the vFM version (content digest) that gave it."""

    output: Any
    version: str


class AsyncHandle:
    """An enqueued job. The work goes on whether or not anybody waits for it; through a gateway, until the client is closed."""

    def __init__(
        self,
        wait: Callable[[float | None], Coroutine[Any, Any, Result]],
        cancel: Callable[[], Coroutine[Any, Any, bool]],
    ):
        self._wait = wait
        self._cancel = cancel

    async def result(self, timeout: float | None = None) -> Result:
        """Wait at most `timeout` seconds. Raises `TimeoutError` (the job goes on; ask again) or the job's typed error."""
        return await self._wait(timeout)

    async def cancel(self) -> bool:
        """True if the job was taken back before it ran. Its `result` raises `Cancelled`."""
        return await self._cancel()


class Handle:
    """An enqueued job, for code without an event loop."""

    def __init__(self, handle: AsyncHandle, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._handle = handle
        self._run = run

    def result(self, timeout: float | None = None) -> Result:
        """Wait at most `timeout` seconds. Raises `TimeoutError` (the job goes on; ask again) or the job's typed error."""
        result: Result = self._run(self._handle.result(timeout))
        return result

    def cancel(self) -> bool:
        """True if the job was taken back before it ran."""
        return bool(self._run(self._handle.cancel()))


class AsyncTextStream(AsyncIterator[str]):
    """A text as it comes: iterate for its pieces. When they have ended, `result` has the whole output: the text, why it ended,
    and its tokens.

    Who leaves early closes it (`aclose`, or the end of `async with`): the job is taken back.
    """

    def __init__(self, pieces: AsyncGenerator[str | Result, None]) -> None:
        """`pieces`: of the text; the result comes last."""
        self._pieces = pieces
        self.result: Result | None = None

    async def __anext__(self) -> str:
        async for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self.result = piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        with suppress(RuntimeError):  # somebody reads it at this moment, and will hear of what ends it
            await self._pieces.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class TextStream(Iterator[str]):
    """The same for code without an event loop; `close`, or `with`, takes back the job of a text that is left early."""

    def __init__(self, stream: AsyncTextStream, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._stream = stream
        self._run = run

    @property
    def result(self) -> Result | None:
        return self._stream.result

    def __next__(self) -> str:
        piece: str | None = self._run(self._next())
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> str | None:
        return await anext(self._stream, None)

    def close(self) -> None:
        with suppress(Unavailable):  # the client is closed: so is this
            self._run(self._stream.aclose())

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


async def wait_task(task: asyncio.Task[T], timeout: float | None) -> T:
    """A task's result within `timeout`, without cancelling it when the time is over."""
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        raise TimeoutError(f"no result within {timeout} s; the job goes on")
    return task.result()
