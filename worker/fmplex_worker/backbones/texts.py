"""Texts as the backbone takes them: token ids, token types, character offsets.

The tokenizers library is called directly: transformers' own `__call__` sets truncation and padding on the shared
tokenizer at every call, which two threads must not do at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fmplex_broker.errors import InvalidInput

Ids = NDArray[np.int64]
# A text as a caller sends it, or a text and its pair.
Raw = str | tuple[str, str]
_FEWEST_TOKENS = 16
_CHARACTERS = 8  # looked at first, for each token that may be taken
_SPARE = 256  # tokens that a cut word may have, and more


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """One encoded text of n tokens. `embeds` `[n, width]` float32 replaces the token embeddings (ids are then 0).

    `offsets` `[n, 2]`: first and last character (exclusive) of each token; (0, 0) for the special
    tokens that the tokenizer adds. Only for tagging.
    """

    ids: Ids
    types: Ids
    embeds: NDArray[np.float32] | None = None
    offsets: NDArray[np.int64] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    def cut(self, limit: int) -> Text:
        """Return the first `limit` tokens; offsets are dropped if it is longer."""
        if self.tokens <= limit:
            return self
        embeds = None if self.embeds is None else self.embeds[:limit]
        return Text(self.ids[:limit], self.types[:limit], embeds)

    @classmethod
    def of_ids(cls, ids: Ids, embeds: NDArray[np.float32] | None = None) -> Text:
        """Make a text of token ids, with token type 0 throughout."""
        return cls(ids, np.zeros_like(ids), embeds)


class Tokenizer:
    """Batch tokenisation; thread-safe. Never pads; texts are cut to `limit` tokens at most, special ones included."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, limit: int) -> None:
        saved = tokenizer.to_str()
        self._whole = tokenizers.Tokenizer.from_str(saved)
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cut = tokenizers.Tokenizer.from_str(saved)
        self._cut.no_padding()
        self._limit = limit
        self._around: tuple[list[int], list[int]] | None = None
        self._cutting = threading.Lock()  # the limit is a setting of the tokenizer

    @classmethod
    def of(cls, tokenizer: Any, model: str, limit: int) -> Tokenizer:
        """Make one from a transformers tokenizer. Raises `InvalidInput` unless it is a fast one with a vocabulary.

        Without tokenizer files transformers 5 makes one up that knows its special tokens and nothing else.
        """
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(fast, tokenizers.Tokenizer) or fast.get_vocab_size() < _FEWEST_TOKENS:
            raise InvalidInput(f"{model!r} has no fast tokenizer; add its tokenizer.json", field="backbone.model")
        return cls(fast, limit)

    @property
    def whole(self) -> tokenizers.Tokenizer:
        """The tokenizer itself, which neither pads nor cuts."""
        return self._whole

    def ids(self, text: str, special: bool) -> list[int]:
        """Return the ids of one text, with the special tokens that the tokenizer adds around texts or without."""
        # As a batch: `encode` keeps the interpreter from everybody else until it is through.
        return list(self._whole.encode_batch_fast([text], add_special_tokens=special)[0].ids)

    def with_special(self, ids: Ids, limit: int | None = None) -> Ids:
        """Return ids of a text with the special tokens that the tokenizer puts around texts, where they are not there already;
        cut to `limit` tokens in all."""
        before, after = self._special()
        inner = [int(token) for token in ids]
        if inner[: len(before)] == before and inner[len(inner) - len(after) :] == after:
            inner = inner[len(before) : len(inner) - len(after)]
        if limit is not None:
            inner = inner[: max(limit - len(before) - len(after), 0)]
        return np.array([*before, *inner, *after], dtype=np.int64)

    def _special(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and behind a text; looked up once."""
        if self._around is None:
            encoding = self._whole.encode_batch(["a"])[0]
            added = encoding.special_tokens_mask
            first = added.index(0) if 0 in added else len(added)
            last = len(added) - added[::-1].index(0) if 0 in added else len(added)
            self._around = list(encoding.ids[:first]), list(encoding.ids[last:])
        return self._around

    def shorten(self, texts: Sequence[str], tokens: int) -> list[str]:
        """Return texts as they are, or a beginning of one that has more than twice so many `tokens`: enough to see that it is too
        long, or to cut it, in the time that a text takes which is not. Whoever takes `tokens` of it at most sees no difference:
        where a text is cut, tokenizers are off by a word at most. (A Unigram tokenizer may split the beginning of a word of
        thousands of characters otherwise than if it had seen its end.)"""
        short = list(texts)
        size, many = _CHARACTERS * (tokens + _SPARE), 2 * tokens + _SPARE
        while long := [i for i, text in enumerate(short) if len(text) > size and text is texts[i]]:
            parts = [texts[i][:size] for i in long]
            encoded = self._whole.encode_batch_fast(parts, add_special_tokens=False)
            for i, part, encoding in zip(long, parts, encoded, strict=True):
                if len(encoding) > many:
                    short[i] = part
            size *= 4  # white space, or words that are one token however long: all of it may be few tokens
        return short

    def encode(self, texts: Sequence[Raw], offsets: bool = False) -> list[Text]:
        """Encode whole texts. With `offsets` it is slower: only tagging needs to know which characters a token covers."""
        return _encode(self._whole, texts, offsets)

    def encode_cut(self, texts: Sequence[Raw], offsets: bool = False, spare: int = 0) -> list[Text]:
        """Encode texts cut to `spare` tokens less than the limit; of a pair, the longer text is cut first."""
        with self._cutting:
            self._cut.enable_truncation(self._limit - spare, strategy="longest_first")
            return _encode(self._cut, texts, offsets)


def _encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[Raw], offsets: bool) -> list[Text]:
    encode = tokenizer.encode_batch if offsets else tokenizer.encode_batch_fast
    return [_text(encoding, offsets) for encoding in encode(list(texts))]


def _text(encoding: tokenizers.Encoding, offsets: bool) -> Text:
    ids = np.array(encoding.ids, dtype=np.int64)
    types = np.array(encoding.type_ids, dtype=np.int64)
    if not offsets:
        return Text(ids, types)
    return Text(ids, types, offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2))
