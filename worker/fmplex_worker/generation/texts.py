"""Tokens to text as they come, and where a text stops."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

_CONTEXT = 6  # tokens of the prompt before the first: whether a word begins with a space depends on what is before it
_BROKEN = "�"  # stands for bytes that are no character (yet)


class Detokenizer:
    """Gives the text of a growing row of tokens, each character once. A character that takes several tokens comes with its last.

    Decoding goes over a few tokens at a time: from `_from`, up to `_upto` of which the text is out already. Tokenizers that join
    or clean words look one token back at most, so what comes out is what decoding the whole at once would give.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        self._from, self._upto = 0, len(self._tokens)

    def push(self, token: int) -> str:
        """The text that this token makes certain."""
        self._tokens.append(token)
        known, text = self._texts()
        if len(text) <= len(known) or text.endswith(_BROKEN):
            return ""
        self._from, self._upto = self._upto, len(self._tokens)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left at the end: bytes that never became a character."""
        known, text = self._texts()
        self._from = self._upto = len(self._tokens)
        return text[len(known) :]

    def name(self, token: int) -> str:
        """A token by itself, special ones too."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return decode(self._tokens[self._from : self._upto]), decode(self._tokens[self._from :])


class Stopper:
    """Lets text through up to the first of the `stops`, none of which comes out, not even in part."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """What may come out now. Once `stopped`, nothing does."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and is no stop after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that the stop begins with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
