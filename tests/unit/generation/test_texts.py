"""Tokens to text and stops: what comes out bit by bit is what decoding the whole gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fmplex_worker.generation.texts import Detokenizer, Stopper


@pytest.fixture(scope="module")
def tokenizer(lm_folder: Callable[[str], Path]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(lm_folder("llama") / "tokenizer.json"))


@given(text=st.text(max_size=60))
def test_every_character_comes_once(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    out = Detokenizer(tokenizer, [])
    assert "".join(out.push(token) for token in ids) + out.flush() == text


@given(tokens=st.lists(st.integers(2, 257), max_size=40))
def test_bytes_that_are_no_text_come_out_as_such(tokenizer: tokenizers.Tokenizer, tokens: list[int]) -> None:
    out = Detokenizer(tokenizer, [])
    got = "".join(out.push(token) for token in tokens) + out.flush()
    assert got.replace("�", "") == tokenizer.decode(tokens).replace("�", "")


def test_a_word_keeps_its_space(tokenizer: tokenizers.Tokenizer) -> None:
    prompt, more = tokenizer.encode("the cat").ids, tokenizer.encode(" sat").ids
    out = Detokenizer(tokenizer, prompt)
    assert "".join(out.push(token) for token in more) + out.flush() == " sat"


def test_half_a_character_waits_for_the_rest(tokenizer: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode("§").ids
    assert len(ids) == 2
    out = Detokenizer(tokenizer, [])
    assert [out.push(token) for token in ids] == ["", "§"]


_PARTS = st.lists(st.text(alphabet="abc", max_size=3), max_size=20)
_STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(parts=_PARTS, stops=_STOPS)
def test_stops_are_found_wherever_they_are_cut(parts: list[str], stops: list[str]) -> None:
    text, stopper = "".join(parts), Stopper(stops)
    got = ""
    for part in parts:
        got += stopper.push(part)
        assert len(got) <= len(text)
    stopped = stopper.stopped
    if not stopped:
        got += stopper.flush()
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stopped == bool(ends)
    if not ends:
        assert got == text
    else:
        assert text.startswith(got)
        assert not any(stop in got for stop in stops)
