"""Tokens to text and stops: what comes out bit by bit is what decoding the whole gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from fmplex_worker.workloads.generation.detokenizer import Detokenizer, StopMatcher
from fmplex_worker.workloads.generation.token_bytes import TokenBytes

SPECIAL = "<s>"


def _of_bytes() -> tokenizers.Tokenizer:
    """As GPT-2, Llama 3 and Qwen have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 4, trainer)
    return tokenizer


def _of_characters() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral have it: what has no token of its own is spelt in bytes."""
    characters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdehmnost", "▁t", "th", "▁th", "▁the"]
    vocabulary = {piece: i for i, piece in enumerate([*characters, "▁c", "at", "▁cat"])}
    merges = [("▁", "t"), ("t", "h"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([SPECIAL])
    return tokenizer


@pytest.fixture(scope="module", params=[_of_bytes, _of_characters])
def tokenizer(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    made: tokenizers.Tokenizer = request.param()
    return made


def _told(tokenizer: tokenizers.Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    """What comes with each token, and what is left at the end."""
    out = Detokenizer(TokenBytes(tokenizer), prompt)
    return [*(out.push(token) for token in tokens), out.flush()]


_TEXTS = st.lists(
    st.one_of(st.text(max_size=9), st.sampled_from(["the cat", " ", SPECIAL, "\ufffd" * 9, SPECIAL * 9, "🧀€"]))
).map("".join)


@given(text=_TEXTS)
def test_every_character_comes_once(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert "".join(_told(tokenizer, ids)) == tokenizer.decode(ids)


@example(tokens=[33])  # <0x20>, a space in front, which goes
@example(tokens=[33, 33, 98])
@given(tokens=st.lists(st.integers(0, 400), max_size=40))
def test_bytes_that_are_no_text_come_out_as_such(tokenizer: tokenizers.Tokenizer, tokens: list[int]) -> None:
    """Where tokens are bytes, exactly as at once. Else one wrong byte spoils all the bytes beside it, which come out as text
    when they come one by one."""
    got, wanted = "".join(_told(tokenizer, tokens)), tokenizer.decode(tokens)
    if isinstance(tokenizer.decoder, decoders.ByteLevel) or "�" not in wanted:
        assert got == wanted


@pytest.mark.parametrize("run", ["\ufffd", SPECIAL, "x"])
def test_nothing_is_held_back_that_is_certain(tokenizer: tokenizers.Tokenizer, run: str) -> None:
    ids = tokenizer.encode(run * 200).ids
    told = _told(tokenizer, ids)
    for n in range(1, len(told)):
        wanted = tokenizer.decode(ids[:n]).rstrip("�")
        assert "".join(told[:n]).startswith(wanted)
        if run == "\ufffd" and tokenizer.decode(ids[n - 3 : n]) == run:
            assert told[n - 1] == run, "a character that stands for broken ones may also have been written"
    assert told[-1] == ""


def test_a_long_run_of_anything_takes_no_longer_than_a_text(tokenizer: tokenizers.Tokenizer) -> None:
    """Counted, not timed: how much is decoded for a token must not grow with what is before it."""
    looked: list[int] = []

    class Counting:
        decoder = tokenizer.decoder
        get_added_tokens_decoder = tokenizer.get_added_tokens_decoder
        id_to_token = tokenizer.id_to_token

        def decode(self, ids: list[int], **how: bool) -> str:
            looked.append(len(ids))
            return tokenizer.decode(ids, **how)

    for run in ("\ufffd", SPECIAL, "the cat ", "🧀"):
        _told(Counting(), tokenizer.encode(run * 100).ids)  # type: ignore[arg-type]
    assert max(looked, default=0) <= 2


def test_a_word_keeps_its_space(tokenizer: tokenizers.Tokenizer) -> None:
    prompt = tokenizer.encode("the cat").ids
    more = tokenizer.encode("the cat sat").ids[len(prompt) :]
    assert "".join(_told(tokenizer, more, prompt)) == " sat"


def test_half_a_character_waits_for_the_rest(tokenizer: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode("a§").ids[-2:]
    assert _told(tokenizer, ids, tokenizer.encode("a").ids) == ["", "§", ""]


def test_a_character_that_the_prompt_began_is_completed(tokenizer: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode("a€").ids
    assert _told(tokenizer, ids[-1:], ids[:-1]) == ["€", ""]


@given(text=_TEXTS, at=st.integers(0, 60))
def test_a_prompt_that_is_cut_anywhere_goes_on_as_if_it_were_not(
    tokenizer: tokenizers.Tokenizer, text: str, at: int
) -> None:
    """Wherever token ids are cut, what follows is what the whole has more than the whole characters before."""
    ids = tokenizer.encode(text).ids
    rest = "".join(_told(tokenizer, ids[at:], ids[:at]))
    assert "\ufffd" in text or "\ufffd" not in rest
    assert tokenizer.decode(ids).endswith(rest)
    assert tokenizer.decode(ids[:at]).rstrip("\ufffd") in tokenizer.decode(ids).removesuffix(rest) + "\ufffd"


@given(prompt=st.sampled_from(["🧀", "a€", "the 🧀", "é"]), cut=st.integers(1, 3), more=st.lists(st.integers(0, 300)))
def test_a_character_that_the_prompt_left_broken_is_not_the_texts(prompt: str, cut: int, more: list[int]) -> None:
    tokenizer = _of_bytes()
    begun = tokenizer.encode(prompt).ids[:-cut]
    before, whole = tokenizer.decode(begun), tokenizer.decode([*begun, *more])
    kept = before if whole.startswith(before) else before[:-1]  # else the text completes the prompt's last character
    assert "".join(_told(tokenizer, more, begun)) == whole.removeprefix(kept)


def test_a_prompt_that_ends_inside_a_character_and_nothing_more_gives_nothing(tokenizer: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode("a🧀").ids
    out = Detokenizer(TokenBytes(tokenizer), ids[:-1])
    assert out.place(ids[-1]) == 0, "the character begins with the text"
    assert out.flush() == ""
    assert _told(tokenizer, tokenizer.encode("🧀b").ids[-1:], ids[:-1]) == ["b", ""]


# --- single tokens ----------------------------------------------------------------------------------------------------


@given(text=st.text(max_size=30))
def test_tokens_joined_are_the_text(tokenizer: tokenizers.Tokenizer, text: str) -> None:
    prompt = tokenizer.encode("the cat").ids
    ids = tokenizer.encode("the cat" + text).ids[len(prompt) :]
    out, spelt = Detokenizer(TokenBytes(tokenizer), prompt), []
    for token in ids:
        spelt.append(out.spell(token))
        out.push(token)
    assert b"".join(spelt).decode() == "".join(_told(tokenizer, ids, prompt))


@given(tokens=st.lists(st.integers(0, 300), max_size=40))
@example(tokens=[170, 95])  # the bytes ED A1, half of a surrogate: two characters, though a decoder still waits
def test_a_token_is_where_it_begins(tokenizer: tokenizers.Tokenizer, tokens: list[int]) -> None:
    token_bytes = TokenBytes(tokenizer)
    prompt, shown = tokenizer.encode("the cat").ids, [token for token in tokens if not token_bytes.silent(token)]
    out, whole = Detokenizer(token_bytes, prompt), b""
    for token in shown:
        spelt = out.spell(token)
        assert out.place(token) == len((whole + spelt[:1]).decode(errors="replace")) - 1
        whole += spelt
        out.push(token)


def test_a_token_reads_as_inside_a_text(tokenizer: tokenizers.Tokenizer) -> None:
    for prompt in ([], tokenizer.encode("cat").ids):
        out = Detokenizer(TokenBytes(tokenizer), prompt)
        for text in (" cat", "€", SPECIAL):
            ids = tokenizer.encode("a" + text).ids[-(3 if text == "€" else 1) :]
            assert b"".join(out.spell(token) for token in ids) == text.encode()
        assert out.spell(10_000) == b"", "models may have more numbers than the tokenizer has tokens"


def test_a_token_may_depend_on_the_one_before_it() -> None:
    """As in decoders that join parts of words; and in those that have no rule, where every token is a word."""
    vocabulary = {"the": 0, "cat": 1, "##s": 2, "!": 3}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "the"))
    for decoder, text in ((decoders.WordPiece(), "the cats!"), (None, "the cat ##s !")):
        if decoder is not None:
            tokenizer.decoder = decoder
        told = _told(tokenizer, [0, 1, 2, 3])
        assert "".join(told) == text
        tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, "the"))


# --- stops ------------------------------------------------------------------------------------------------------------

_PARTS = st.lists(st.text(alphabet="abc", max_size=3), max_size=20)
_STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(parts=_PARTS, stops=_STOPS)
def test_stops_are_found_wherever_they_are_cut(parts: list[str], stops: list[str]) -> None:
    text, stopper = "".join(parts), StopMatcher(stops)
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


_PIECES = st.lists(st.one_of(st.text("ab<|", max_size=3), st.just("<|x|>"), st.just("<|y|>")), max_size=12)


@given(
    _PIECES,
    st.lists(
        st.one_of(st.text("ab<|", min_size=1, max_size=3), st.sampled_from(["<|x|>", "b<|x|>a", "<|y|><|x|>"])),
        max_size=3,
    ),
)
def test_stops_that_spell_special_tokens_are_found_among_those_that_do_not_come_out(
    pieces: list[str], stops: list[str]
) -> None:
    special = {"<|x|>", "<|y|>"}
    spelt = [stop for stop in stops if any(name in stop for name in special)]
    plain = [stop for stop in stops if stop not in spelt]
    matcher = StopMatcher(stops, spelt.__contains__)
    told = "".join(matcher.push("", piece) if piece in special else matcher.push(piece) for piece in pieces)
    told += matcher.flush()
    written, shown = "".join(pieces), "".join(piece for piece in pieces if piece not in special)
    assert matcher.stopped == (any(stop in written for stop in spelt) or any(stop in shown for stop in plain))
    assert shown.startswith(told)
    assert matcher.stopped or told == shown
    assert not any(stop in told for stop in plain)


@pytest.mark.parametrize(
    ("pieces", "stop", "told"),
    [
        (["tea", "<|x|>", "\n"], "<|x|>\n", "tea"),
        (["tea", "<|x|>", "\t"], "<|x|>\n", "tea\t"),
        (["tea", "<|x|>"], "a<|x|>", "te"),
        (["te", "<|x|>", "a"], "ea", "t"),
        (["tea", "<|x|>"], "|x", "tea"),
    ],
)
def test_what_does_not_come_out_is_matched_by_stops_that_spell_it(pieces: list[str], stop: str, told: str) -> None:
    matcher = StopMatcher([stop], lambda text: "<|x|>" in text)
    out = "".join(matcher.push("", piece) if piece == "<|x|>" else matcher.push(piece) for piece in pieces)
    assert out + matcher.flush() == told
