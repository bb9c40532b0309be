"""Held-out scores from served outputs, each beside what always giving the most frequent answer would score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fmplex.demo.tasks import DemoTask, Examples
from fmplex_broker.wire.tensors import Tensor

Row = dict[str, Any]
Output = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """A held-out score in its metric, and the `baseline`: what always giving the most frequent answer would score."""

    metric: str
    value: float
    baseline: float


def score(task: DemoTask, examples: Examples, train: Sequence[Output], held_out: Sequence[Output]) -> Score:
    """Score a task. `train` and `held_out`: what the fleet answered to the examples, in their order."""
    if task.head == "classification" and "labels" in examples.train[0]:
        return _multi_label(examples, held_out)
    return _SCORERS[task.head](examples, train, held_out)


def needs_train(task: DemoTask) -> bool:
    """Tell whether scoring needs outputs of the training texts too: to compare embeddings with, or to choose a similarity's
    threshold."""
    return task.head in ("embedding", "similarity")


def _share(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits)


def _majority(train: Sequence[Row], held_out: Sequence[Row], key: str) -> float:
    best = Counter(str(row[key]) for row in train).most_common(1)[0][0]
    return _share([str(row[key]) == best for row in held_out])


def _classification(examples: Examples, _: Sequence[Output], outputs: Sequence[Output]) -> Score:
    hits = [out["label"] == row["label"] for row, out in zip(examples.held_out, outputs, strict=True)]
    return Score("accuracy", _share(hits), _majority(examples.train, examples.held_out, "label"))


def _f1(found: Sequence[set[Any]], right: Sequence[set[Any]]) -> float:
    common = sum(len(f & r) for f, r in zip(found, right, strict=True))
    total = sum(map(len, found)) + sum(map(len, right))
    return 2 * common / total if total else 0.0


def _multi_label(examples: Examples, outputs: Sequence[Output]) -> Score:
    right = [set(row["labels"]) for row in examples.held_out]
    best = Counter(tuple(sorted(row["labels"])) for row in examples.train).most_common(1)[0][0]
    return Score("micro F1", _f1([set(out["labels"]) for out in outputs], right), _f1([set(best)] * len(right), right))


def _regression(examples: Examples, _: Sequence[Output], outputs: Sequence[Output]) -> Score:
    gold: list[float] = [row["value"] for row in examples.held_out]
    mean = sum(gold) / len(gold)
    guess = sum(row["value"] for row in examples.train) / len(examples.train)

    def r2(values: Sequence[float]) -> float:
        missed = sum(abs(g - v) ** 2 for g, v in zip(gold, values, strict=True))
        return 1.0 - missed / sum(abs(g - mean) ** 2 for g in gold)

    return Score("R²", r2([out["value"] for out in outputs]), r2([guess] * len(gold)))


def _tagging(examples: Examples, _: Sequence[Output], outputs: Sequence[Output]) -> Score:
    def spans(rows: Sequence[Row]) -> list[set[Any]]:
        return [{(s["start"], s["end"], s["label"]) for s in row["spans"]} for row in rows]

    return Score("span F1", _f1(spans(outputs), spans(examples.held_out)), 0.0)  # 'outside' everywhere finds nothing


def _ranking(examples: Examples, _: Sequence[Output], outputs: Sequence[Output]) -> Score:
    hits = [(out["score"] >= 0.5) == bool(row["label"]) for row, out in zip(examples.held_out, outputs, strict=True)]
    return Score("accuracy", _share(hits), _majority(examples.train, examples.held_out, "label"))


def _similarity(examples: Examples, train: Sequence[Output], outputs: Sequence[Output]) -> Score:
    def accuracy(threshold: float, rows: Sequence[Row], outs: Sequence[Output]) -> float:
        return _share([(o["score"] >= threshold) == bool(r["label"]) for r, o in zip(rows, outs, strict=True)])

    threshold: float = max((o["score"] for o in train), key=lambda t: accuracy(t, examples.train, train))
    baseline = _majority(examples.train, examples.held_out, "label")
    return Score("accuracy", accuracy(threshold, examples.held_out, outputs), baseline)


def _embedding(examples: Examples, train: Sequence[Output], outputs: Sequence[Output]) -> Score:
    def vector(out: Output) -> list[float]:
        tensor: Tensor = out["embedding"]
        values: list[float] = tensor.tolist()
        return values

    groups: dict[str, list[list[float]]] = {}
    for row, out in zip(examples.train, train, strict=True):
        groups.setdefault(row["label"], []).append(vector(out))
    centres = {label: [sum(xs) / len(xs) for xs in zip(*vs, strict=True)] for label, vs in groups.items()}

    def nearest(v: list[float]) -> str:
        return max(centres, key=lambda label: sum(a * b for a, b in zip(v, centres[label], strict=True)))

    hits = [nearest(vector(out)) == row["label"] for row, out in zip(examples.held_out, outputs, strict=True)]
    return Score("accuracy", _share(hits), _majority(examples.train, examples.held_out, "label"))


_SCORERS: dict[str, Callable[[Examples, Sequence[Output], Sequence[Output]], Score]] = {
    "classification": _classification,
    "regression": _regression,
    "tagging": _tagging,
    "ranking": _ranking,
    "similarity": _similarity,
    "embedding": _embedding,
}
