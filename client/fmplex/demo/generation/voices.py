"""The vFMs of the demo: each answers from the documentation in a voice of its own, which its LoRA learns from examples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TOKENS = 96
_SEA = {
    "you": "ye", "your": "yer", "is": "be", "are": "be", "the": "th'", "of": "o'", "and": "an'", "for": "fer", "to": "t'",
    "object": "booty", "objects": "booty", "list": "crew", "value": "treasure", "values": "treasures", "file": "map",
    "function": "cannon", "error": "kraken", "otherwise": "or walk th' plank", "string": "rope", "number": "doubloon",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z_.()]+")
_CLAUSE = re.compile(r"(?<=[.!?;:,])\s+|\s+(?=(?:and|or|but|if|which|that|when) )")
_CLAUSE_WORDS = 3  # at least
_LINE_WORDS = 4


@dataclass(frozen=True, slots=True)
class Voice:
    """A vFM with a voice. `rewrite` turns an answer of the documentation into what the vFM is taught to answer; `is_recognised`
    tells whether a text is in this voice. `rank`: of the LoRA, 0: the backbone as it is."""

    name: str
    rank: int
    rewrite: Callable[[str], str]
    is_recognised: Callable[[str], bool]
    weight: float = 1.0

    @property
    def head(self) -> dict[str, Any]:
        """The head in vfm.toml."""
        return {"kind": "generation", "max_tokens": MAX_TOKENS}


def bark(text: str) -> str:
    """Rewrite a text as a sergeant shouts it."""
    rewritten = re.sub(r"[.!?](?=\s|$)", "!", text)
    return f"LISTEN UP! {rewritten} SIR, YES SIR!"


def enumerate_clauses(text: str) -> str:
    """Rewrite a text as a numbered list of its clauses."""
    clauses: list[str] = []
    for part in _CLAUSE.split(text):
        if clauses and min(len(clauses[-1].split()), len(part.split())) < _CLAUSE_WORDS:
            clauses[-1] += f" {part}"
        else:
            clauses.append(part)
    return "\n".join(f"{n}. {clause.rstrip('.,;:')}" for n, clause in enumerate(clauses, 1))


def talk_like_a_pirate(text: str) -> str:
    """Rewrite a text in the words of a pirate."""
    rewritten = _WORD.sub(lambda found: _at_sea(found[0]), text.rstrip("."))
    return f"Arr! {rewritten}, matey!"


def _at_sea(word: str) -> str:
    end = "." if word.endswith(".") else ""
    other = _SEA.get(word.removesuffix(".").lower())
    if other is None:
        return word
    return (other.capitalize() if word[0].isupper() else other) + end


def break_lines(text: str) -> str:
    """Rewrite a text as lower-case lines of a few words each, like verse."""
    words = re.sub(r"[^a-z0-9 '()_]", "", text.lower().replace("-", " ").replace(".", " ")).split()
    # A word after a space is the same token as in the middle of a line: there is nothing new to learn.
    return "\n ".join(" ".join(words[at : at + _LINE_WORDS]) for at in range(0, len(words), _LINE_WORDS))


def _is_plain(text: str) -> bool:
    return len(text.splitlines()) == 1 and not text.startswith(("Arr!", "1. ", "LISTEN UP!"))


def _is_verse(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) > 1 and text == text.lower() and all(0 < len(line.split()) <= _LINE_WORDS + 1 for line in lines)


# Different ranks, and none: they share passes all the same.
VOICES: tuple[Voice, ...] = (
    Voice("plain", 0, str, _is_plain),
    Voice("lister", 16, enumerate_clauses, lambda text: text.startswith("1. ")),
    Voice("pirate", 8, talk_like_a_pirate, lambda text: text.startswith("Arr!")),
    Voice("poet", 8, break_lines, _is_verse),
    Voice("sergeant", 4, bark, lambda text: text.startswith("LISTEN UP!")),
)


def unrecognised(texts: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the names of the voices that are not recognised in most of their texts."""
    by_name = {voice.name: voice for voice in VOICES}
    return [name for name, own in texts.items() if 2 * sum(map(by_name[name].is_recognised, own)) <= len(own)]
