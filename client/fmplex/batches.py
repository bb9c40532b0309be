"""The calls of a `map`, and the bar that shows its progress."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

from rich.progress import Progress

from fmplex_broker.errors import InvalidInput

_PER_CALL = 32  # inputs of a `map` that travel together


class MapPlan:
    """The calls of a `map` over `inputs` with about `window` of them under way: `chunks` of inputs, `calls` chunks at a time;
    `total` inputs, None if that is not known. Raises `InvalidInput`."""

    def __init__(self, inputs: Iterable[Any], window: int) -> None:
        if isinstance(inputs, str | dict):
            raise InvalidInput("map takes many inputs: give a list or an iterator", field="inputs")
        if window < 1:
            raise InvalidInput("window must be at least 1", field="window")
        size = min(_PER_CALL, window)
        self.total = len(inputs) if isinstance(inputs, Sized) else None
        self.calls = max(1, window // size)
        self.chunks = _chunks(iter(inputs), size)


def _chunks(inputs: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(inputs, size)):
        yield chunk


@contextmanager
def progress_bar(title: str, total: int | None, shown: bool) -> Iterator[Callable[[], None]]:
    """Draw a progress bar, unless it is not `shown`, and give the function that moves it on by one."""
    with Progress(disable=not shown) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
