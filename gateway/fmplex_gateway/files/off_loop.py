"""Calls of the file store off the event loop: one after the other for each file, and none that is waited for without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from fmplex_broker.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")
# Of one call. Stores have limits of their own, with many tries; a folder on a server that is away has none.
ANSWER_S = 60.0
# Threads of their own: if the store does not answer, nothing else waits.
_threads = ThreadPoolExecutor(8, thread_name_prefix="files")


class StoreCalls:
    """The calls that are made for one file: no two of them run at once, also when nobody waits for the first any more."""

    def __init__(self) -> None:
        self._last: Future[Any] | None = None

    async def __call__(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Make a call on a thread; return what it returns. Raises what it raises, and `StoreUnavailable` when it takes too
        long."""
        self._last = _threads.submit(call, *args, **named)
        try:
            async with asyncio.timeout(ANSWER_S):
                result: T = await asyncio.wrap_future(self._last)
        except TimeoutError as e:
            raise StoreUnavailable(f"the artifact store has not answered in {ANSWER_S:g} s; try again later") from e
        return result

    async def finish(self, call: Callable[[], object]) -> None:
        """Make the last call, once the one before has ended. It is waited for unless that one still runs, as when the store does
        not answer."""
        if self._last is None or self._last.done():
            await self(call)
        else:
            self._last.add_done_callback(lambda _: _threads.submit(call))
