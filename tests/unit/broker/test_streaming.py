"""A text that is told as it comes: whatever happens to its chunks, a reader gets each character once and in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmplex_broker.errors import StreamRestarted
from fmplex_broker.wire.messages import packb
from fmplex_broker.wire.streaming import Chunk, Delta, StreamReader, decode_chunk, encode_chunk
from tests.unit.broker.strategies import values

counts = st.integers(0, 2**40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@dataclass(frozen=True)
class Whole:
    """A text as its reply has it; each token has a name, so that none can be taken for another."""

    text: str
    tokens: int

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        return [{"id": n} for n in range(self.tokens)]

    def chunks(self, cuts: Iterable[tuple[int, int]], attempt: int = 1) -> list[Chunk]:
        """One ends at each cut (characters, tokens)."""
        out, at, token_at = [], 0, 0
        for end, token_end in cuts:
            logprobs = self.logprobs[token_at:token_end]
            delta = Delta(at, self.text[at:end], token_at, token_end - token_at, logprobs)
            out.append(Chunk(attempt, len(out) + 1, delta))
            at, token_at = end, token_end
        return out


wholes = st.builds(Whole, texts, st.integers(0, 12))


@st.composite
def runs(draw: st.DrawFn, whole: Whole, attempt: int = 1) -> list[Chunk]:
    """What one run tells: all of it, or as far as it comes. Text may lag behind tokens, and characters behind both."""
    number = draw(st.integers(0, 6))
    ends = sorted(draw(st.lists(st.integers(0, len(whole.text)), min_size=number, max_size=number)))
    token_ends = sorted(draw(st.lists(st.integers(0, whole.tokens), min_size=number, max_size=number)))
    return whole.chunks(zip(ends, token_ends, strict=True), attempt)


@dataclass
class Reader:
    """Passes on to somebody who checks that nothing comes twice, is missing, or comes too early."""

    reader: StreamReader
    text: str = ""
    logprobs: tuple[int, ...] = ()
    tokens: int = 0

    def take(self, part: Delta | None) -> None:
        if part is None:
            return
        assert part.text or part.tokens, "nothing new in it"
        assert (part.at, part.token_at, part.tokens) == (len(self.text), self.tokens, len(part.logprobs))
        self.text += part.text
        self.tokens += part.tokens
        self.logprobs += tuple(entry["id"] for entry in part.logprobs)

    def end(self, whole: Whole) -> None:
        """A run that came to the same text may have needed more tokens for it: these are not taken back."""
        tokens = max(self.tokens, whole.tokens)
        self.take(self.reader.end(whole.text, whole.tokens, whole.logprobs))
        assert (self.text, self.tokens) == (whole.text, tokens)


def reader() -> Reader:
    return Reader(StreamReader())


# --- one run ----------------------------------------------------------------------------------------------------------


@given(st.data(), wholes)
def test_what_arrives_whole_is_passed_on_at_once(data: st.DataObject, whole: Whole) -> None:
    mine = reader()
    for chunk in data.draw(runs(whole)):
        mine.take(mine.reader.read(chunk))
        assert mine.text == whole.text[: chunk.delta.at + len(chunk.delta.text)]
        assert mine.tokens == chunk.delta.token_at + chunk.delta.tokens
    mine.end(whole)
    assert mine.logprobs == tuple(range(whole.tokens))
    mine.end(whole)  # nothing comes twice


@given(st.data(), wholes)
def test_chunks_that_get_lost_or_come_twice(data: st.DataObject, whole: Whole) -> None:
    told = data.draw(runs(whole))
    mine = reader()
    for chunk in data.draw(
        st.lists(st.sampled_from(told)).map(lambda some: sorted(some, key=told.index)) if told else st.just([])
    ):
        mine.take(mine.reader.read(chunk))
    mine.end(whole)
    assert mine.logprobs == tuple(range(whole.tokens))


@given(st.data(), wholes)
def test_even_out_of_order(data: st.DataObject, whole: Whole) -> None:
    """An inbox never does that; it must do no harm."""
    told = data.draw(runs(whole))
    mine = reader()
    for chunk in data.draw(st.lists(st.sampled_from(told))) if told else []:
        mine.take(mine.reader.read(chunk))
    mine.end(whole)
    assert mine.logprobs == tuple(range(whole.tokens))


def test_after_a_gap_nothing_comes_until_the_end() -> None:
    """What comes behind it cannot be put in its place."""
    one, _, three, four = Whole("abcd", 4).chunks([(1, 1), (2, 2), (3, 3), (4, 4)])
    mine = reader()
    for chunk in (one, three, four):
        mine.take(mine.reader.read(chunk))
    assert mine.text == "a"
    mine.end(Whole("abcd", 4))


def test_who_comes_late_gets_all_of_it_in_the_end() -> None:
    mine = reader()
    for chunk in Whole("abcd", 4).chunks([(1, 1), (2, 2), (4, 4)])[1:]:
        mine.take(mine.reader.read(chunk))
    assert mine.text == ""
    mine.end(Whole("abcd", 4))


def test_tokens_may_come_before_what_they_read() -> None:
    """Half a character, or what could become a stop string."""
    whole = Whole("é!", 3)
    mine = reader()
    for chunk, seen in zip(whole.chunks([(0, 1), (1, 2), (2, 3)]), ["", "é", "é!"], strict=True):
        mine.take(mine.reader.read(chunk))
        assert (mine.text, mine.tokens) == (seen, chunk.number)


# --- several runs -----------------------------------------------------------------------------------------------------


@given(st.data(), wholes, st.lists(st.booleans(), max_size=3))
def test_a_job_that_runs_again_the_same_way(data: st.DataObject, whole: Whole, counted: list[bool]) -> None:
    """On whatever worker, cut into whatever chunks, and whether or not the delivery before it was counted."""
    mine, attempt, longest = reader(), 1, ""
    for n, counts_ in enumerate([False, *counted]):
        attempt += counts_
        for chunk in data.draw(runs(whole, attempt), label=f"run {n}"):
            mine.take(mine.reader.read(chunk))
            longest = max(longest, whole.text[: chunk.delta.at + len(chunk.delta.text)], key=len)
            assert mine.text == longest  # nobody waits for the end because of it
    mine.end(whole)
    assert mine.logprobs == tuple(range(whole.tokens))


def passes_on(mine: Reader, chunks: Iterable[Chunk], whole: Whole) -> bool:
    """Whether all of it could be told."""
    try:
        for chunk in chunks:
            mine.take(mine.reader.read(chunk))
        mine.end(whole)
    except StreamRestarted:
        return False
    return True


@given(st.data(), st.lists(wholes, min_size=1, max_size=3))
def test_whatever_happens_the_whole_text_comes_or_it_is_said_that_it_cannot(
    data: st.DataObject, different: list[Whole]
) -> None:
    """Runs that come out differently, with chunks lost and repeated on the way; the last one is answered with."""
    told: list[Chunk] = []
    for n, whole in enumerate(different):
        run = data.draw(runs(whole, n + 1))
        told += (
            data.draw(st.lists(st.sampled_from(run)).map(lambda some, run=run: sorted(some, key=run.index)))
            if run
            else []
        )
    mine, last = reader(), different[-1]
    if passes_on(mine, told, last):
        assert mine.text == last.text
    else:
        assert len({whole.text for whole in different}) > 1


@pytest.mark.parametrize("again", ["aX", "X", "Xb", "abX"])
def test_a_text_that_comes_out_differently_restarts(again: str) -> None:
    mine, whole = reader(), Whole(again, 1)
    mine.take(mine.reader.read(Whole("abc", 3).chunks([(3, 3)])[0]))
    assert not passes_on(mine, whole.chunks([(len(again), 1)], attempt=2), whole)
    assert mine.text == "abc"


def test_a_text_that_comes_out_shorter_restarts() -> None:
    mine = reader()
    mine.take(mine.reader.read(Whole("abc", 3).chunks([(3, 3)])[0]))
    with pytest.raises(StreamRestarted, match="again"):
        mine.reader.end("ab", 2, [])


def test_a_run_without_gaps_mends_one_with_gaps() -> None:
    whole = Whole("abcd", 4)
    one, _, three = whole.chunks([(1, 1), (2, 2), (3, 3)])
    mine = reader()
    for chunk in (one, three, *whole.chunks([(3, 3), (4, 4)], attempt=2)):
        mine.take(mine.reader.read(chunk))
    assert mine.text == "abcd"


def test_late_words_of_a_run_that_is_over_are_passed_over() -> None:
    mine = reader()
    for chunk in (Whole("ab", 2).chunks([(2, 2)], attempt=2)[0], Whole("other", 5).chunks([(5, 5)])[0]):
        mine.take(mine.reader.read(chunk))
    assert mine.text == "ab"


# --- parts put together -----------------------------------------------------------------------------------------------


@given(st.data(), wholes)
def test_parts_that_nobody_has_asked_for_yet_become_one(data: st.DataObject, whole: Whole) -> None:
    parts = [chunk.delta for chunk in data.draw(runs(whole))]
    if not parts:
        return
    both = parts[0]
    for part in parts[1:]:
        both = both + part
    cut = len(both.text), both.tokens
    assert both == whole.chunks([cut])[0].delta
    assert parts[0] is not both or len(parts) == 1  # none of them is changed


# --- on the wire ------------------------------------------------------------------------------------------------------


@given(st.data(), wholes, st.integers(1, 5))
def test_a_chunk_survives_the_wire(data: st.DataObject, whole: Whole, attempt: int) -> None:
    for chunk in data.draw(runs(whole, attempt)):
        assert decode_chunk(encode_chunk(chunk)) == chunk


@given(counts, counts, counts, st.text(st.characters(exclude_categories=["Cs"])), counts, counts)
def test_any_numbers(attempt: int, number: int, at: int, text: str, token_at: int, tokens: int) -> None:
    chunk = Chunk(attempt, number, Delta(at, text, token_at, tokens))
    assert decode_chunk(encode_chunk(chunk)) == chunk


@given(st.binary(max_size=60) | values.map(packb) | st.lists(values, max_size=8).map(lambda rest: packb([1, *rest])))
def test_what_is_no_chunk_is_a_value_error(data: bytes) -> None:
    try:
        chunk = decode_chunk(data)
    except ValueError:
        return
    assert decode_chunk(encode_chunk(chunk)) == chunk


@pytest.mark.parametrize(
    "wire",
    [[2, 1, 1, 0, "x", 0, 1, []], [1, 1, 1, 0, "x", 0, 1], [1, 1, 1, -1, "x", 0, 1, []], [1, "1", 1, 0, "x", 0, 1, []], {}],
)  # fmt: skip
def test_other_versions_and_nonsense(wire: Any) -> None:
    with pytest.raises(ValueError, match="not a chunk"):
        decode_chunk(packb(wire))
