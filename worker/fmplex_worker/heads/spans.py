"""Spans of characters from tokens with labels, for tagging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def spans(
    text: str, offsets: Iterable[Sequence[int]], best: Sequence[int], scores: Sequence[float], labels: Sequence[str]
) -> list[dict[str, Any]]:
    """Make labelled spans of `text`, in order.

    For each token: `offsets` = first and last (exclusive) character, equal for special tokens, which count for nothing;
    `best` = its class (0: outside, i: `labels[i - 1]`), `scores` = the probability of that class. Neighbouring tokens of
    one label make one span, with whatever white space lies between them; its score is the mean of theirs.
    """
    runs: list[tuple[int, int, int, list[float]]] = []  # class, first, last character, scores
    before = 0
    for (first, last), label, score in zip(offsets, best, scores, strict=True):
        if first == last:
            continue
        if label and label == before:
            kind, start, _, scored = runs[-1]
            scored.append(score)
            runs[-1] = kind, start, last, scored
        elif label:
            runs.append((label, first, last, [score]))
        before = label
    return [made for run in runs if (made := _span(text, run, labels))]


def _span(text: str, run: tuple[int, int, int, list[float]], labels: Sequence[str]) -> dict[str, Any] | None:
    """Make one span, without the white space at its ends, which some tokenizers count to a token; None if there is nothing
    else."""
    label, start, end, scores = run
    covered = text[start:end]
    start += len(covered) - len(covered.lstrip())
    covered = covered.strip()
    if not covered:
        return None
    score = sum(scores) / len(scores)
    return {"start": start, "end": start + len(covered), "label": labels[label - 1], "score": score, "text": covered}
