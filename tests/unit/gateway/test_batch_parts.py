"""What the feeder of batches is made of: which lines are done, reading on, when a part is due, room."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import StoreUnavailable
from fmplex_gateway.batches.calling import inputs_of
from fmplex_gateway.batches.desk import Clock, Room
from fmplex_gateway.batches.parts import PART_BYTES, is_due
from fmplex_gateway.batches.reading import DoneLines, LineReader, left_of

indexes = st.lists(st.integers(0, 50_000), max_size=30)


@given(indexes, indexes)
def test_lines_that_are_done(first: list[int], second: list[int]) -> None:
    before = DoneLines().with_lines(first)
    after = DoneLines(before.raw()).with_lines(second)
    for index in {*first, *second, 0, 7, 8, 49_999}:
        assert (index in before) == (index in first)
        assert (index in after) == (index in first or index in second)
    assert set(left_of(100, after)) == set(range(100)) - set(first) - set(second)


class Store:
    """A store with one file, which fails where it is told to."""

    def __init__(self, content: bytes, failures: Iterator[bool]) -> None:
        self.content = content
        self.failures = failures
        self.open_files = 0

    def open(self, name: str) -> Any:
        store = self

        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if next(store.failures, False):
                    raise StoreUnavailable("away")
                return super().read(min(size or 0, 7))

            def close(self) -> None:
                store.open_files -= not self.closed
                super().close()

        self.open_files += 1
        return File(self.content)


@given(
    st.lists(st.sampled_from(["", "a", "bb", "a longer line"]), max_size=30),
    st.sets(st.integers(0, 29)),
    st.lists(st.booleans(), max_size=60),
    st.integers(1, 5),
    st.integers(1, 20),
)
def test_a_reader_gives_each_line_once_that_is_not_done_whatever_fails(
    lines: list[str], done: set[int], failures: list[bool], most: int, most_bytes: int
) -> None:
    store = Store("\n".join(lines).encode(), iter(failures))
    reader = LineReader(store, "file", DoneLines().with_lines(sorted(done)))  # type: ignore[arg-type]
    got: list[tuple[int, int, bytes]] = []
    while not reader.at_end:
        try:
            found = reader.read(most, most_bytes)
        except StoreUnavailable:
            continue
        assert len(found) <= most
        assert sum(len(line.data) for line in found[:-1]) < most_bytes
        got += [(line.index, line.number, line.data) for line in found]
        if len(got) % 3 == 0:
            reader.close()
    reader.close()
    full = [(number, line.encode()) for number, line in enumerate(lines, 1) if line]
    assert got == [(index, number, data) for index, (number, data) in enumerate(full) if index not in done]
    assert store.open_files == 0


@pytest.mark.parametrize(
    ("rows", "nbytes", "age_s", "began_s", "due"),
    [
        (0, 0, 1e9, 1e9, False),
        (1, 1, 1.9, 10, False),
        (1, 1, 2.0, 10, True),
        (255, PART_BYTES - 1, 1.9, 10, False),
        (256, 1, 0, 10, True),
        (1, PART_BYTES, 0, 10, True),
        (1, 1, 9, 1000, False),
        (1, 1, 10, 1000, True),
        (1, 1, 299, 600_000, False),
        (1, 1, 300, 600_000, True),
    ],
)
def test_when_a_part_is_due(rows: int, nbytes: int, age_s: float, began_s: float, due: bool) -> None:
    assert is_due(rows, nbytes, age_s, began_s) is due


@pytest.mark.parametrize(("batches", "lines"), [(0, 256), (1, 256), (16, 256), (17, 240), (256, 16), (5000, 1)])
def test_many_batches_have_smaller_windows(batches: int, lines: int) -> None:
    room = Room()
    room.batches = batches
    assert room.lines == lines


def test_the_clock_is_the_servers() -> None:
    clock = Clock()
    clock.set(1000.0)
    assert 1000.0 <= clock.now() < 1005.0


@pytest.mark.parametrize(
    ("body", "inputs"),
    [({}, 1), ({"input": "a"}, 1), ({"input": ["a", "b"]}, 2), ({"inputs": []}, 0), ({"prompt": ["a"] * 9}, 9)],
)
def test_a_line_may_have_many_inputs(body: dict[str, Any], inputs: int) -> None:
    assert inputs_of(body) == max(inputs, 1)
