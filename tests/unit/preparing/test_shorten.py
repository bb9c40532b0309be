"""A text that is too long is seen to be so from its beginning, and no text that fits is ever refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Whole
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from fmplex_worker.backbones.texts import Tokenizer

LIMIT = 8
CORPUS = ["the cat sat on the mat and a dog ran after it, unhappily", "Zürich 東京 naïve", "aaaa bbbb     cccc"] * 20


def byte_level() -> Whole:
    """As GPT-2, Llama 3 and Qwen have it."""
    whole = Whole(models.BPE())
    whole.pre_tokenizer = pre_tokenizers.ByteLevel()
    whole.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    whole.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return whole


def word_pieces() -> Whole:
    """As BERT has it: white space is nothing, and a word of more than a hundred characters is one unknown token."""
    whole = Whole(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    whole.normalizer = normalizers.BertNormalizer()
    whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]"], show_progress=False)
    whole.train_from_iterator(CORPUS, trainer)
    return whole


def pieces() -> Whole:
    """As SentencePiece has it: white space is a character, and unknown ones go together as one token."""
    whole = Whole(models.Unigram())
    whole.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    whole.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    whole.train_from_iterator(CORPUS, trainer)
    return whole


KINDS = {"byte level": byte_level(), "word pieces": word_pieces(), "pieces": pieces()}
_PARTS = st.one_of(
    st.sampled_from(["the cat ", "a", " ", "\t", "\u200b", "\0", "é", "東", "🙂", "ﬁ", "x\u0301", "unhappily", "."]),
    st.text(max_size=8),
)
_TEXTS = st.lists(st.tuples(_PARTS, st.sampled_from([1, 1, 3, 50, 3000])), max_size=6).map(
    lambda parts: "".join(part * times for part, times in parts)
)


@pytest.mark.parametrize("kind", KINDS)
@given(text=_TEXTS)
@settings(max_examples=150, deadline=None)
def test_a_text_that_fits_is_never_refused_and_one_that_is_cut_is_cut_alike(kind: str, text: str) -> None:
    tokenizer = Tokenizer(KINDS[kind], LIMIT)
    *_, short = tokenizer.shorten(["the cat", text, "a dog " * 2000, text], LIMIT)
    some, whole = tokenizer.ids(short, True), tokenizer.ids(text, True)
    assert (len(some) > LIMIT) == (len(whole) > LIMIT)
    if kind == "pieces" and any(len(word) > 1000 for word in text.split()):
        return  # Unigram splits a word as is best for all of it, to its end
    assert some[:LIMIT] == whole[:LIMIT]
    (cut,), (all_cut,) = tokenizer.encode_cut([short]), tokenizer.encode_cut([text])
    assert list(cut.ids) == list(all_cut.ids)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_text_that_is_far_too_long_only_the_beginning_is_read(kind: str) -> None:
    tokenizer = Tokenizer(KINDS[kind], LIMIT)
    (short,) = tokenizer.shorten(["the cat sat on the mat. " * 40_000], LIMIT)
    assert len(short) < 20_000


def test_what_is_few_tokens_however_long_is_taken_whole() -> None:
    tokenizer = Tokenizer(KINDS["word pieces"], LIMIT)
    for text in (" " * 500_000 + "the cat", "a" * 500_000 + " the cat"):
        assert tokenizer.shorten([text], LIMIT) == [text]
        assert len(tokenizer.ids(text, True)) <= LIMIT


def test_others_go_on_while_a_text_is_tokenised() -> None:
    """A heartbeat must: the interpreter is not kept until the text is through."""
    tokenizer = Tokenizer(KINDS["byte level"], LIMIT)
    text = "the cat sat on the mat. " * 40_000
    beats, at_it, done = 0, threading.Event(), threading.Event()

    def tokenise() -> None:
        at_it.set()
        tokenizer.ids(text, True)
        done.set()

    thread: Any = threading.Thread(target=tokenise)
    thread.start()
    at_it.wait()
    while not done.is_set():
        time.sleep(0.001)
        beats += 1
    thread.join()
    assert beats > 20
