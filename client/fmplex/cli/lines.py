"""Lines of a file or a pipe, as they come."""

from __future__ import annotations

import codecs
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from io import UnsupportedOperation
from pathlib import Path
from queue import Empty, Queue
from typing import Any, BinaryIO, NamedTuple, TypeVar

from fmplex_broker.errors import InvalidInput

T = TypeVar("T")


class Line(NamedTuple):
    """A line that is not blank: its number from 1 on, its value, and what is wrong with it if it has none."""

    number: int
    value: Any
    error: InvalidInput | None = None


def open_lines(path: Path | None) -> BinaryIO:
    """Open a file, or standard input if `path` is None or `-`. Raises `InvalidInput`."""
    if path is None or str(path) == "-":
        try:
            # Not `sys.stdin` itself: the interpreter could not end while a thread reads from that.
            return open(sys.stdin.fileno(), "rb", closefd=False)
        except UnsupportedOperation:  # no file: another program's text
            return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as e:
        raise InvalidInput(f"{path} cannot be read ({e.strerror}); check the path", field="inputs") from e


def read_lines(file: Iterable[bytes], parse: Callable[[str], Any] = str) -> Iterator[Line]:
    """Yield the lines of a file that are not blank, each as it is but for its line end, read by `parse`.

    A line that is not UTF-8, or of which `parse` raises `ValueError`, has an error.
    """
    for number, raw in enumerate(file, 1):
        content = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        try:
            text = content.decode().removesuffix("\n").removesuffix("\r")
            if text.strip():
                yield Line(number, parse(text))
        except UnicodeDecodeError as e:
            wrong = f"not UTF-8 text (byte 0x{content[e.start]:02x} at {e.start + 1})"
            yield Line(number, None, InvalidInput(wrong, field="inputs"))
        except ValueError as e:
            yield Line(number, None, InvalidInput(str(e), field="inputs"))


def as_they_come(items: Iterator[T], most: int) -> Iterator[list[T]]:
    """Yield items in lists of those that are there by now, `most` at a time: whoever sends one is not kept waiting for a second.

    Raises what `items` raises.
    """
    waiting: Queue[T | BaseException | None] = Queue(most)

    def read() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(None)
        except BaseException as e:
            waiting.put(e)

    # A daemon: nothing else can end a thread that waits for a terminal or a pipe.
    threading.Thread(target=read, name="fmplex-lines", daemon=True).start()
    ended = False
    while not ended:
        found: list[T] = []
        while len(found) < most and not ended:
            try:
                item = waiting.get(block=not found)
            except Empty:
                break
            if isinstance(item, BaseException):
                if found:
                    yield found
                raise item
            if item is None:
                ended = True
            else:
                found.append(item)
        if found:
            yield found
