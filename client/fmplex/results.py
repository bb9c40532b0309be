"""Results of calls: whole outputs, handles of enqueued jobs, and texts as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from fmplex.call import wait_s
from fmplex.homes import Home
from fmplex.loop_thread import LoopThread
from fmplex_broker.errors import Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one input, the same through a gateway and straight to the streams.

    `output`: what the vFM's head gives, as `{"label": …, "scores": {…}}`, `{"embedding": tensor}` or `{"text": …, …}`. `vfm`: its
    name; `version`: the version (content digest) that ran. `units`: how much work it was (tokens). Milliseconds: `queue_ms` from
    enqueue to the start of its first pass, `run_ms` in passes, and `load_ms`, a part of `queue_ms`, while the version was being
    loaded (0: it was there).
    """

    output: Any
    vfm: str
    version: str
    units: int
    queue_ms: float
    run_ms: float
    load_ms: float


class AsyncHandle:
    """An enqueued job, as `AsyncClient.enqueue` gives it. It runs whether or not anybody waits for it; through a gateway, until
    the client is closed.

    `wait` (at most so many seconds) and `cancel`: how the transport does them.
    """

    def __init__(
        self,
        wait: Callable[[float | None], Coroutine[Any, Any, Result]],
        cancel: Callable[[], Coroutine[Any, Any, bool]],
    ):
        self._wait = wait
        self._cancel = cancel
        self._home = Home()
        self._home.look()

    async def result(self, timeout: float | None = None) -> Result:
        """Wait for the result, at most `timeout` seconds (None: until the job's deadline), and return it, again and again.

        Raises `TimeoutError` (the job goes on; ask again), `Cancelled`, `DeadlineExceeded`, the job's typed error, or
        `InvalidInput` where another process or event loop has enqueued the job.
        """
        self._home.require("the job")
        return await self._wait(wait_s(timeout))

    async def cancel(self) -> bool:
        """Cancel the job; return True if that was before it ran: its `result` raises `Cancelled` then."""
        self._home.require("the job")
        return await self._cancel()


class Handle:
    """An enqueued job, as `Client.enqueue` gives it. It runs whether or not anybody waits for it; through a gateway, until the
    client is closed.

    `handle`: the job; `loop`: where it is waited for.
    """

    def __init__(self, handle: AsyncHandle, loop: LoopThread) -> None:
        self._handle = handle
        self._loop = loop

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result, at most `timeout` seconds (None: until the job's deadline), and return it, again and again.

        Raises `TimeoutError` (the job goes on; ask again), `Cancelled`, `DeadlineExceeded`, the job's typed error, or
        `InvalidInput` in a process that was forked since.
        """
        return self._loop.run(self._handle.result(timeout))

    def cancel(self) -> bool:
        """Cancel the job; return True if that was before it ran: its `result` raises `Cancelled` then."""
        return self._loop.run(self._handle.cancel())


class AsyncTextStream(AsyncIterator[str]):
    """A text as it comes, as `AsyncClient.stream` gives it: iterate (`async for`) for its pieces.

    Close a text that is left early (`aclose`, or the end of `async with`): that cancels the job. `pieces`: of the text; the
    result comes last.
    """

    def __init__(self, pieces: AsyncGenerator[str | Result, None]) -> None:
        self._pieces = pieces
        self._result: Result | None = None
        self._home = Home()

    @property
    def result(self) -> Result | None:
        """The whole output once the pieces have ended: the text, why it ended, and its tokens; None until then."""
        return self._result

    async def __anext__(self) -> str:
        self._home.require("the text")
        async for piece in self._pieces:
            if isinstance(piece, str):
                return piece
            self._result = piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading; cancel the job if its text has not ended."""
        if self._home.look() != "here":  # whoever reads it there closes it there
            return
        with suppress(RuntimeError):  # somebody reads it at this moment, and gets the error that ends it
            await self._pieces.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class TextStream(Iterator[str]):
    """A text as it comes, as `Client.stream` gives it: iterate for its pieces.

    Close a text that is left early (`close`, or the end of `with`): that cancels the job. `stream`: the text; `loop`: where it is
    read.
    """

    def __init__(self, stream: AsyncTextStream, loop: LoopThread) -> None:
        self._stream = stream
        self._loop = loop

    @property
    def result(self) -> Result | None:
        """The whole output once the pieces have ended: the text, why it ended, and its tokens; None until then."""
        return self._stream.result

    def __next__(self) -> str:
        piece = self._loop.run(self._next())
        if piece is None:
            raise StopIteration
        return piece

    async def _next(self) -> str | None:
        return await anext(self._stream, None)

    def close(self) -> None:
        """Stop reading; cancel the job if its text has not ended."""
        with suppress(Unavailable):  # the client is closed: so is this
            self._loop.run(self._stream.aclose())

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
