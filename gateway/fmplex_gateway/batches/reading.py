"""Reading an input file a few lines at a time, and which of its lines are done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from fmplex_broker.errors import StoreUnavailable
from fmplex_broker.packages.files import FileStore
from fmplex_gateway.batches.lines import RawLine, raw_lines


class DoneLines:
    """Lines that are done, by index: a bit each, the first is the lowest of the first byte."""

    def __init__(self, raw: bytes | bytearray = b"") -> None:
        self._bits = bytearray(raw)

    def __contains__(self, index: int) -> bool:
        at, bit = divmod(index, 8)
        return at < len(self._bits) and bool(self._bits[at] >> bit & 1)

    def with_lines(self, indexes: list[int]) -> DoneLines:
        """Return these and more."""
        bits = self._bits.ljust(max(indexes, default=0) // 8 + 1, b"\0")
        for index in indexes:
            bits[index // 8] |= 1 << index % 8
        return DoneLines(bits)

    def raw(self) -> bytes:
        """Return the bits."""
        return bytes(self._bits)


class LineReader:
    """Reads the lines of an input file that are not `done`, in their order, each once. Blocking; call it off the event loop.

    Raises `UnknownFile`, and `StoreUnavailable`: then the same call again reads on.
    """

    def __init__(self, store: FileStore, file: str, done: DoneLines) -> None:
        self._store = store
        self._file = file
        self._done = done
        self._next = 0
        self._open: IO[bytes] | None = None
        self._lines: Iterator[RawLine] = iter(())
        self.at_end = False

    def read(self, most: int, most_bytes: int) -> list[RawLine]:
        """Read the next lines, `most` of them or until they have `most_bytes`; none at the end."""
        if self._open is None:
            self._open = self._store.open(self._file)
            self._lines = raw_lines(self._open)
        found: list[RawLine] = []
        nbytes = 0
        try:
            while len(found) < most and nbytes < most_bytes:
                line = next(self._lines, None)
                if line is None:
                    self.at_end = True
                    break
                if line.index >= self._next and line.index not in self._done:
                    found.append(line)
                    nbytes += len(line.data)
        except StoreUnavailable:
            self.close()
            raise
        if found:
            self._next = found[-1].index + 1
        return found

    def close(self) -> None:
        """Close the file; the next call opens it again and goes on where this one was."""
        if self._open is not None:
            file, self._open, self._lines = self._open, None, iter(())
            with suppress(StoreUnavailable):
                file.close()


def left_of(total: int, done: DoneLines) -> Iterator[int]:
    """Yield the indexes of the lines that are not done."""
    return (index for index in range(total) if index not in done)
