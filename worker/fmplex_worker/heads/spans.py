"""Spans of characters from tokens with labels, for tagging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fmplex_broker.specs.tag_schemes import CLOSING, OPENING, Tag, read_tags


def spans(
    text: str, offsets: Iterable[Sequence[int]], best: Sequence[int], scores: Sequence[float], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Make labelled spans of `text`, in order.

    For each token: `offsets` = first and last (exclusive) character, equal for special tokens, which count for nothing;
    `best` = its class (0: outside, i: `labels[i - 1]`), `scores` = the probability of that class. Neighbouring tokens of
    one label make one span, with whatever white space lies between them; its score is the mean of theirs. Labels that are tags
    of a scheme (BIO, …) say themselves where a span begins and ends.
    """
    tags = read_tags(labels) or [Tag("I", label) for label in labels]
    runs: list[tuple[str, int, int, list[float]]] = []  # kind, first, last character, scores
    before = ""  # kind of the span that is open
    for (first, last), label, score in zip(offsets, best, scores, strict=True):
        if first == last:
            continue
        if not label:
            before = ""
            continue
        place, kind = tags[label - 1]
        if kind == before and place not in OPENING:
            _, start, _, scored = runs[-1]
            scored.append(score)
            runs[-1] = kind, start, last, scored
        else:
            runs.append((kind, first, last, [score]))
        before = "" if place in CLOSING else kind
    return [made for run in runs if (made := _span(text, run))]


def _span(text: str, run: tuple[str, int, int, list[float]]) -> dict[str, Any] | None:
    """Make one span, without the white space at its ends, which some tokenizers count to a token; None if there is nothing
    else."""
    kind, start, end, scores = run
    covered = text[start:end]
    start += len(covered) - len(covered.lstrip())
    covered = covered.strip()
    if not covered:
        return None
    score = sum(scores) / len(scores)
    return {"start": start, "end": start + len(covered), "label": kind, "score": score, "text": covered}
