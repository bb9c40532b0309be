"""Wait until something holds, instead of sleeping for luck: `until` on the event loop, `wait_until` beside it."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE_S = 90.0  # the machine may be busy with other things
SOON_S = 5.0  # patience with what happens in this process, or on one server


async def until(condition: Callable[[], Any], what: str = "it holds", patience_s: float = PATIENCE_S) -> Any:
    """Poll a condition, which may be a coroutine function, until it holds; return its value. The event loop goes on meanwhile.

    Fails after `patience_s` seconds, saying `what` never came.
    """
    for pause_s in _pauses(what, patience_s):
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(pause_s)


async def until_soon(condition: Callable[[], Any], what: str = "it holds", patience_s: float = SOON_S) -> Any:
    """Poll like `until`, with little patience: what comes only after a lease or a timeout has come too late."""
    return await until(condition, what, patience_s)


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Poll like `until`, blocking the thread."""
    for pause_s in _pauses(what, patience_s):
        if value := condition():
            return value
        time.sleep(pause_s)


def _pauses(what: str, patience_s: float) -> Iterator[float]:
    """Yield the seconds to sleep after each look, a little longer each time; fail when patience is over."""
    end, pause_s = time.monotonic() + patience_s, 0.001
    while True:
        last = time.monotonic() >= end
        yield pause_s
        assert not last, f"waited {patience_s:g} s in vain until {what}"
        pause_s = min(1.5 * pause_s, 0.02)
