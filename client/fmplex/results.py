"""What a call gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

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


async def wait_task(task: asyncio.Task[T], timeout: float | None) -> T:
    """A task's result within `timeout`, without cancelling it when the time is over."""
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        raise TimeoutError(f"no result within {timeout} s; the job goes on")
    return task.result()
