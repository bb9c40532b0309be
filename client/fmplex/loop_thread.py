"""An event loop on a thread of its own, for code that has none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Generic, TypeVar

from fmplex.homes import forks, keep_in_forks
from fmplex_broker.errors import Cancelled, InvalidInput, Unavailable

T = TypeVar("T")


class Work(Generic[T]):
    """Some work that was started on the loop; `future`: of its result."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future
        self._forks = forks()

    def wait(self) -> T:
        """Wait for the result. Raises what the work raises, `Cancelled` if the loop is closed, `InvalidInput` in a process that
        was forked since."""
        if self._forks != forks():  # what does it stayed in the other process
            raise InvalidInput("this call was begun before the process was forked; begin it again here")
        try:
            return self._future.result()
        except CancelledError:
            raise Cancelled("the client was closed while this call was under way") from None
        except BaseException:
            self._future.cancel()  # Ctrl-C here takes the job back there
            raise

    def cancel(self) -> None:
        """Cancel the work, if it is this process's."""
        if self._forks == forks():
            self._future.cancel()


class LoopThread:
    """The event loop of one client, on a thread of its own. Safe to use from many threads. A process that is forked gets another
    loop on first use: threads stay behind."""

    def __init__(self) -> None:
        self._closed = False
        # By process. No lock: a fork while another thread holds one would leave it locked for ever.
        self._threads: dict[int, _Thread] = {forks(): _Thread()}

    def submit(self, work: Coroutine[Any, Any, T]) -> Work[T]:
        """Start some work. Raises `Unavailable` once the loop is closed."""
        if self._closed:
            work.close()
            raise Unavailable("this client is closed; make a new one")
        return Work(asyncio.run_coroutine_threadsafe(work, self._thread().loop))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run some work and return its result. Raises what `submit` and `Work.wait` raise."""
        return self.submit(work).wait()

    def close(self, last: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Cancel what is under way, run `last`, and end the loop and its thread. A closed one stays closed."""
        if not self._closed:
            self._closed = True
            if (thread := self._threads.get(forks())) is not None:
                asyncio.run_coroutine_threadsafe(_end(last), thread.loop).result()
                thread.stop()

    def _thread(self) -> _Thread:
        thread = self._threads.get(forks())
        if thread is None:
            made = _Thread()
            thread = self._threads.setdefault(forks(), made)
            if thread is not made:  # another thread of this process was first
                made.stop()
        return thread


class _Thread:
    """A running loop and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        keep_in_forks(self.loop)
        self._thread = threading.Thread(target=self.loop.run_forever, name="fmplex-client", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and its thread; nothing may be under way."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _end(last: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if last is not None:
        await last()
