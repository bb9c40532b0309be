"""From logits to what callers get: plain Python values."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fmplex_broker.specs.heads import Classification, Ranking

_THRESHOLD = 0.5  # of a multi-label score


def from_logits(specs: Sequence[Any], top_k: Sequence[int | None], logits: Tensor) -> Iterator[dict[str, Any]]:
    """Turn logits `[jobs, k]` into the answer of each job's head: for k = 1 a number, for more a classification."""
    if logits.shape[1] == 1:
        values, scores = logits[:, 0].tolist(), logits[:, 0].sigmoid().tolist()
        for spec, value, score in zip(specs, values, scores, strict=True):
            yield {"score": score} if isinstance(spec, Ranking) else {"value": value}
        return
    several = [i for i, spec in enumerate(specs) if spec.multi_label]
    shares = logits.softmax(1)
    if several:
        shares[several] = logits[several].sigmoid()
    best = shares.argmax(1).tolist()
    for spec, k, row, top in zip(specs, top_k, shares.tolist(), best, strict=True):
        yield _classification(spec, k, row, top)


def _classification(spec: Classification, k: int | None, row: list[float], top: int) -> dict[str, Any]:
    """Make one job's answer. `top_k` keeps the best scores, best first; which labels are chosen does not depend on it."""
    if k is None:
        scores = dict(zip(spec.labels, row, strict=True))
    else:
        scores = {spec.labels[i]: row[i] for i in heapq.nlargest(k, range(len(row)), key=row.__getitem__)}
    if spec.multi_label:
        return {"labels": [spec.labels[i] for i, score in enumerate(row) if score >= _THRESHOLD], "scores": scores}
    return {"label": spec.labels[top], "scores": scores}
