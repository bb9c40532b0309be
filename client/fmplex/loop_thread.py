"""An event loop on a thread of its own, for code that has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from fmplex_broker.errors import Cancelled, Unavailable

T = TypeVar("T")


class LoopThread:
    """The event loop of one client, on a thread of its own. Safe to use from many threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fmplex-client", daemon=True)
        self._thread.start()
        self._closed = False

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start some work. Raises `Unavailable` once the loop is closed."""
        if self._closed:
            work.close()
            raise Unavailable("this client is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run some work and return its result. Raises what `submit` and `wait` raise."""
        return self.wait(self.submit(work))

    def wait(self, future: Future[T]) -> T:
        """Wait for the result of work that was started. Raises what the work raises, and `Cancelled` if the loop is closed."""
        try:
            return future.result()
        except CancelledError:
            raise Cancelled("the client was closed while this call was under way") from None
        except BaseException:
            future.cancel()  # Ctrl-C here takes the job back there
            raise

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel what is under way, run `last`, and end the loop and its thread. A closed one stays closed."""
        if not self._closed:
            self._closed = True
            asyncio.run_coroutine_threadsafe(_end(last), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _end(last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if last is not None:
        await last()
