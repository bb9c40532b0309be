"""Long computations on a thread: in turns, so that whoever waits for the interpreter gets it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_WORK_S, _REST_S = 0.002, 0.001
T = TypeVar("T")


def in_turns(items: Iterable[T]) -> Iterator[T]:
    """Yield items, and rest for a moment whenever they and what is done with them have taken two milliseconds."""
    began = time.monotonic()
    for item in items:
        yield item
        if time.monotonic() - began > _WORK_S:
            time.sleep(_REST_S)
            began = time.monotonic()
