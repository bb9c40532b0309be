"""Where something lives: the process, and the event loop of its first use. Neither a fork nor a second loop can use what waits
in the first."""

from __future__ import annotations

import asyncio
import os
from typing import Literal
from weakref import WeakSet

from fmplex_broker.errors import InvalidInput

_forks = 0  # that lie between this process and the one that has imported this
_open: WeakSet[object] = WeakSet()
_kept: list[object] = []


def _count_fork() -> None:
    global _forks
    _forks += 1
    _kept.extend(_open)


os.register_at_fork(after_in_child=_count_fork)


def forks() -> int:
    """Return a number that differs between a process and those that are forked from it. Cheap; no process id comes twice."""
    return _forks


def keep_in_forks(thing: object) -> None:
    """Keep a thing for ever in processes that are forked from this one: what its end does to connections and selectors, which
    they share, it would do to this process."""
    _open.add(thing)


class Home:
    """The process in which it is made, and the event loop that asks it first."""

    def __init__(self) -> None:
        self._forks = forks()
        self._loop: asyncio.AbstractEventLoop | None = None

    def look(self) -> Literal["here", "forked", "ended", "elsewhere"]:
        """Tell how the running event loop stands to this home: the same; in a process that was forked since; another one, as the
        first is closed; another one beside the first. Raises `RuntimeError` where no loop runs."""
        running = asyncio.get_running_loop()
        if self._forks != forks():
            return "forked"
        if self._loop is None:
            self._loop = running
        if self._loop is running:
            return "here"
        return "ended" if self._loop.is_closed() else "elsewhere"

    def require(self, what: str) -> None:
        """Raise `InvalidInput` unless the running event loop is the first one, of the same process. `what`: lives here."""
        match self.look():
            case "forked":
                raise InvalidInput(f"{what} belongs to the process from which this one was forked; ask for it there")
            case "ended":
                raise InvalidInput(f"{what} belongs to an event loop that is closed; use it in the loop that made it")
            case "elsewhere":
                raise InvalidInput(f"{what} belongs to another event loop; use it in the loop that made it")
