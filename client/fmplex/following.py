"""What ends by itself on a fleet, a batch or a tuning job: looking at it, waiting for its end with a bar, listing such."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fmplex_broker.errors import Unavailable

PAGE = 100  # of a list, in one answer, at most
_SOONEST_S, _LATEST_S = 0.1, 5.0  # until the next look
_AWAY_S = 600.0  # that the gateway may be away; what is waited for goes on meanwhile


class Named(Protocol):
    """What is known of something in a list."""

    @property
    def id(self) -> str:
        """Return its name."""
        ...


class Ending(Named, Protocol):
    """What is known of something that ends."""

    @property
    def ended(self) -> bool:
        """Tell whether it has."""
        ...


class Calls(Protocol):
    """Requests about things of one kind."""

    async def ready(self) -> None:
        """Raise `Unavailable` if the client is closed."""
        ...

    def show(self, name: str, /) -> Awaitable[Any]:
        """Return one as it is now."""
        ...


T = TypeVar("T")
C = TypeVar("C", bound=Calls)
C_co = TypeVar("C_co", bound=Calls, covariant=True)
I = TypeVar("I", bound=Ending)  # noqa: E741 - short for what an attribute `info` has
N = TypeVar("N", bound=Named)


class Ask(Protocol[C_co]):
    """Ask a gateway for something that may be asked for twice, again where that helps; return what comes of it."""

    def __call__(self, send: Callable[[C_co], Awaitable[T]], /) -> Coroutine[Any, Any, T]:
        """Return what comes of `send`."""
        ...


class Waiting(Generic[I]):
    """Waits for the end of something on a fleet for at most `timeout` seconds, None: until it ends. `progress`: draw a bar on
    standard error."""

    def __init__(self, timeout: float | None, progress: bool) -> None:
        self._begun = self._heard = time.monotonic()
        self._timeout = timeout
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
            TextColumn("ETA"), TimeRemainingColumn(), TimeElapsedColumn(), TextColumn("{task.fields[failed]}", style="red"),
            console=Console(stderr=True), redirect_stdout=False, disable=not progress,
        )  # fmt: skip
        self._task = self._bar.add_task("validating", total=None, rate="", failed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def saw(self, info: I) -> bool:
        """Take it as it is now; return whether it has ended. Raises `TimeoutError`."""
        self.show(info)
        self._heard = time.monotonic()
        if not info.ended:
            self._in_time(info.id)
        return info.ended

    def show(self, info: I) -> None:
        """Bring the bar to what is known."""
        raise NotImplementedError

    def missed(self, name: str, e: Unavailable) -> None:
        """Take that the gateway did not answer. Raises the error when that has lasted, or `TimeoutError`."""
        self._in_time(name)
        if time.monotonic() - self._heard > _AWAY_S:
            raise e

    def pause_s(self) -> float:
        """Return the seconds until the next look: the longer it takes, the more."""
        passed = time.monotonic() - self._begun
        left = _LATEST_S if self._timeout is None else max(0.0, self._timeout - passed)
        return min(max(_SOONEST_S, passed / 100), _LATEST_S, left)

    def _in_time(self, name: str) -> None:
        if self._timeout is not None and time.monotonic() - self._begun >= self._timeout:
            raise TimeoutError(f"{name} has not ended within {self._timeout} s; it goes on")


class Followed(Generic[C, I]):
    """Something that ends, as it was when it was last looked at: `info`. `ask`: for what it needs."""

    watch: type[Waiting[I]]

    def __init__(self, ask: Ask[C], info: I) -> None:
        self._ask = ask
        self.info = info

    async def refresh(self) -> I:
        """Look at it."""
        self.info = await self._ask(lambda calls: calls.show(self.info.id))
        return self.info

    async def look(self, watch: Waiting[I]) -> bool:
        """Look at it on behalf of somebody who waits; return whether it has ended. Raises as `Waiting` does."""
        await self._ask(lambda calls: calls.ready())  # a closed client is not one whose gateway is away
        try:
            return watch.saw(self.info if self.info.ended else await self.refresh())
        except Unavailable as e:
            watch.missed(self.info.id, e)
            return False

    async def wait(self, timeout: float | None, progress: bool = False) -> I:
        """Wait for its end, at most `timeout` seconds. Raises as `Waiting` does."""
        with self.watch(timeout, progress) as watch:
            while not await self.look(watch):  # noqa: ASYNC110 - it is another process that ends it
                await asyncio.sleep(watch.pause_s())
        return self.info


async def all_pages(
    ask: Ask[C],
    page: Callable[[C, int, str | None], Awaitable[tuple[list[N], bool]]],
    limit: int | None = None,
    after: str | None = None,
) -> list[N]:
    """List all that there is of something, or the first `limit`."""
    found: list[N] = []
    more = True
    while more and (limit is None or len(found) < limit):
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        last = found[-1].id if found else after
        some, more = await ask(lambda calls: page(calls, wanted, last))  # noqa: B023 - asked at once
        found += some
        more = more and bool(some)
    return found
