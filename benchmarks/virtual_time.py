"""An event loop whose time is made up: it goes on at once when nothing is left to do at this moment. And a device on it."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from unittest.mock import patch

from fmplex_worker.host.device_thread import DeviceThread
from fmplex_worker.protocol import Outcome, Prepared, Work

T = TypeVar("T")


class Clock:
    """Seconds since the begin. `ahead`: by how much what runs on the device has got ahead of the loop."""

    def __init__(self) -> None:
        self.at = 0.0
        self.ahead = 0.0

    def __call__(self) -> float:
        """Return the time now."""
        return self.at + self.ahead


class _Selector(selectors.DefaultSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for ever"
        self._clock.at += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on that clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._virtual = clock

    def time(self) -> float:
        """Return the time now."""
        return self._virtual.at


def run(main: Callable[[Clock], Coroutine[Any, Any, T]]) -> T:
    """Run it to its end; `time.monotonic` is the made-up time too."""
    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(clock)) as runner, patch.object(time, "monotonic", clock):
        return runner.run(main(clock))


class Device(DeviceThread):
    """Runs one thing after the other; a pass takes `pass_s(tokens)`, and texts say themselves what they come to."""

    def __init__(self, clock: Clock, pass_s: Callable[[int], float]) -> None:
        self._clock = clock
        self._pass_s = pass_s
        self._queue: deque[tuple[asyncio.Future[Any], Coroutine[Any, Any, Any]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.log: list[tuple[float, str]] = []  # when what began
        self.by: defaultdict[str, float] = defaultdict(float)  # seconds that were lent

    def step(self, work: Sequence[Work]) -> asyncio.Future[Outcome]:
        """Run a pass."""
        return self._enqueue(self._step(list(work)))

    def lend(self, steps: Iterator[T]) -> asyncio.Future[list[T]]:
        """Run something else, step by step."""
        return self._enqueue(self._lend(steps))

    def drop(self, prepared: Prepared) -> None:
        """Do nothing."""

    def spend(self, seconds: float, who: str) -> None:
        """Take so long; called by what runs in a step."""
        self._clock.ahead += seconds
        self.by[who] += seconds

    def _enqueue(self, job: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((outcome, job))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        return outcome

    async def _run(self) -> None:
        while self._queue:
            outcome, job = self._queue.popleft()
            outcome.set_result(await job)

    async def _step(self, work: list[Work]) -> Outcome:
        self.log.append((self._clock(), "pass"))
        seconds = self._pass_s(sum(one.tokens for one in work))
        await asyncio.sleep(seconds)
        return Outcome(seconds, [one.prepared.ran(one.tokens) if one.prepared.memory else "done" for one in work])  # type: ignore[attr-defined]

    async def _lend(self, steps: Iterator[T]) -> list[T]:
        done: list[T] = []
        while True:
            began = self._clock()
            one = next(steps, None)
            took, self._clock.ahead = self._clock.ahead, 0.0
            if one is None:
                return done
            done.append(one)
            if took:
                self.log.append((began, "unit"))
                await asyncio.sleep(took)
