"""Detokenizing: tokens to text as they come, and where a text stops."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from fmplex_worker.workloads.generation.token_bytes import TokenBytes

_CONTEXT = 6  # tokens of the prompt before the first: whether a word begins with a space depends on what is before it
_Utf8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Gives the text of a sequence behind its `prompt`, each character once: with the token that completes it. Nothing else is
    held back. With `special`, special tokens are part of the text. A prompt may end inside a character: if the text goes on with
    it, the whole character comes, else nothing of it, for that it is broken is the prompt's doing."""

    def __init__(self, token_bytes: TokenBytes, prompt: Sequence[int], *, special: bool = False) -> None:
        self._token_bytes = token_bytes
        self._writes_special = special
        self._before: int | None = None  # the last token that is part of the text
        self._characters = _Utf8("replace")
        self._length = 0  # characters given
        self._begun = b""  # of the character that the prompt ends inside
        for token in prompt[-_CONTEXT:]:
            self.push(token)
        self._begun, _ = self._characters.getstate()
        self._characters.reset()
        self._length = 0  # the prompt has been given by somebody else

    def push(self, token: int) -> str:
        """Go on by a token; return the text that it makes certain."""
        if self._token_bytes.silent(token):
            data = self._written(token)
        else:
            data = self._token_bytes.after(self._before, token)
            self._before = token
        text = self._characters.decode(self._go_on(data) if self._begun else data)
        self._length += len(text)
        return text

    def _go_on(self, data: bytes) -> bytes:
        """Go on with the prompt's last character; return what is to be decoded: it, once it is whole, or what comes after it."""
        data, self._begun = self._begun + data, b""
        try:
            if not _Utf8().decode(data):
                data, self._begun = b"", data
        except UnicodeDecodeError as e:
            data = data[0 if e.start else e.end :]
        return data

    def hidden(self, token: int) -> str:
        """Return how a special token is written that is left out of the text; "" for any other token."""
        return "" if self._writes_special else self._token_bytes.special(token)

    def _written(self, token: int) -> bytes:
        """Return what a token that is silent by itself is in the text."""
        return self._token_bytes.special(token).encode() if self._writes_special else b""

    def flush(self) -> str:
        """Return the text that is left at the end, of bytes that never became a character."""
        return self._characters.decode(b"", final=True)

    def spell(self, token: int) -> bytes:
        """Spell a token as it would read if it came next, special ones too. The space before a word stays also where nothing is
        before it and the text goes without: else two tokens would read alike."""
        if self._token_bytes.silent(token):
            return self._token_bytes.name(token).encode()
        return self._token_bytes.after(token if self._before is None else self._before, token)

    def place(self, token: int) -> int:
        """Find where in the text a token would begin if it came next: if it goes on with a character, where that begins."""
        if self._begun or (self._token_bytes.silent(token) and not self._written(token)):
            return self._length
        trial = _Utf8("replace")
        trial.setstate(self._characters.getstate())
        # Its first byte either belongs to what waits for its end, or shows that this is broken: then there are two characters,
        # also where the decoder still waits, as it does after half a surrogate.
        data = self._written(token) or self._token_bytes.after(self._before, token)
        begun = len(trial.decode(data[:1]))
        begun += len(trial.getstate()[0].decode(errors="replace"))
        return self._length + max(begun - 1, 0)


class StopMatcher:
    """Lets text through up to the first of the `stops`, none of which comes out, not even in part.

    Some of them may spell special tokens: these (`spells(stop)`) are looked for among all that the model writes, the others in
    what comes out.
    """

    def __init__(self, stops: Sequence[str], spells: Callable[[str], bool] = lambda stop: False) -> None:
        self._spelt = tuple(filter(spells, stops))
        self._plain = tuple(stop for stop in stops if stop not in self._spelt)
        self._held: list[tuple[str, bool]] = []  # characters, and whether they may come out
        self.stopped = False

    def push(self, text: str, hidden: str = "") -> str:
        """Go on by some text, or by what is `hidden` from it; return what may come out now. Once `stopped`, nothing does."""
        if self.stopped or not (self._plain or self._spelt):
            return "" if self.stopped else text
        held = self._held + [(c, True) for c in text] + [(c, False) for c in hidden]
        shown = [i for i, (_, out) in enumerate(held) if out]
        found = [shown[at] for at in _find(self._plain, "".join(held[i][0] for i in shown))]
        found += _find(self._spelt, "".join(c for c, _ in held))
        if found:
            self.stopped, self._held = True, []
            return _shown(held[: min(found)])
        keep = [len(held)]
        if overlap := _longest(self._plain, "".join(held[i][0] for i in shown)):
            keep.append(shown[-overlap])
        keep.append(len(held) - _longest(self._spelt, "".join(c for c, _ in held)))
        self._held = held[min(keep) :]
        return _shown(held[: min(keep)])

    def flush(self) -> str:
        """Return the text that was held back and is no stop after all."""
        held, self._held = self._held, []
        return _shown(held)


def _shown(held: Sequence[tuple[str, bool]]) -> str:
    return "".join(c for c, out in held if out)


def _find(stops: Sequence[str], text: str) -> list[int]:
    """Return where in the text the stops begin that are in it."""
    return [at for stop in stops if (at := text.find(stop)) >= 0]


def _longest(stops: Sequence[str], text: str) -> int:
    """Return the length of the longest end of the text that a stop begins with."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of the text that the stop begins with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
