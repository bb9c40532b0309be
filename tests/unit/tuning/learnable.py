"""Synthetic data that even random weights can be trained on: what a text is about hangs on its words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]

ANIMALS, PLACES, FILLERS = ("cat", "dog"), ("paris", "house"), ("the", "on", "in", "sat", "a", "b", "c", "d")
ABOUT = {"animal": ANIMALS, "place": PLACES, "mat": ("mat",)}
COUNT = 150


def write(path: Path, lines: Sequence[Line]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _filled(rng: random.Random, *words: str) -> str:
    text = [*words, *rng.choices(FILLERS, k=rng.randint(2, 4))]
    rng.shuffle(text)
    return " ".join(text)


def _about(rng: random.Random, label: str) -> str:
    return _filled(rng, *rng.choices(ABOUT[label], k=2))


def labelled() -> list[Line]:
    rng = random.Random(1)
    labels = [rng.choice(list(ABOUT)) for _ in range(COUNT)]
    return [{"text": _about(rng, label), "label": label} for label in labels]


def multi_labelled() -> list[Line]:
    rng = random.Random(2)
    sets = [[label for label in ABOUT if rng.random() < 0.4] for _ in range(COUNT)]
    return [
        {"text": _filled(rng, *(w for la in labels for w in rng.choices(ABOUT[la], k=2))), "labels": labels}
        for labels in sets
    ]


def valued() -> list[Line]:
    rng = random.Random(3)
    counts = [rng.randint(0, 4) for _ in range(COUNT)]
    return [{"text": _filled(rng, *["cat"] * n, *["mat"] * (4 - n)), "value": 1000.0 + 50 * n} for n in counts]


def tagged() -> list[Line]:
    rng = random.Random(4)
    lines = []
    for _ in range(COUNT):
        text, spans = "", []
        for word in _filled(rng, *rng.choices((*ANIMALS, *PLACES), k=rng.randint(0, 2))).split():
            start = len(text) + bool(text)
            text += (" " if text else "") + word
            for label, words in ABOUT.items():
                if word in words:
                    spans.append({"start": start, "end": len(text), "label": label})
        lines.append({"text": text, "spans": _merged(spans)})
    return lines


def _merged(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring words of one label are one span, as they are when served."""
    merged: list[dict[str, Any]] = []
    for span in spans:
        if merged and merged[-1]["label"] == span["label"] and merged[-1]["end"] + 1 == span["start"]:
            merged[-1]["end"] = span["end"]
        else:
            merged.append(span)
    return merged


def paired() -> list[Line]:
    rng = random.Random(5)
    lines = []
    for _ in range(COUNT):
        first, second = rng.choice(list(ABOUT)), rng.choice(list(ABOUT))
        second = first if rng.random() < 0.3 else second
        texts = [" ".join(rng.choices(ABOUT[label], k=rng.randint(2, 4))) for label in (first, second)]
        lines.append({"text": texts[0], "text_pair": texts[1], "label": int(first == second)})
    return lines


def ranked() -> list[Line]:
    """What is about animals is relevant, whatever was asked."""
    rng = random.Random(6)
    labels = [rng.randint(0, 1) for _ in range(COUNT)]
    return [
        {"text": rng.choice(FILLERS), "text_pair": _about(rng, "animal" if label else "place"), "label": label}
        for label in labels
    ]


# By head; after a colon, a kind of data for it.
MAKERS: dict[str, Callable[[], list[Line]]] = {
    "classification": labelled,
    "classification:multi_label": multi_labelled,
    "regression": valued,
    "tagging": tagged,
    "similarity": paired,
    "ranking": ranked,
    "embedding": labelled,
}
