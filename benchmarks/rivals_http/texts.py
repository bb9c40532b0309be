"""The inputs that are embedded: texts cut from the demo's sentences, with lognormal lengths, the same list for every server."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

_SENTENCES = Path(__file__).parents[2] / "client" / "fmplex" / "demo" / "data"
_ENGLISH = ("aspects", "formality", "ranking", "sentiment", "stars", "topic", "urgency")
MEDIAN, SPREAD, SHORTEST, LONGEST = 32, 0.6, 8, 120  # tokens, those that the tokenizer adds included


def texts(model: Path, count: int) -> tuple[list[str], list[int]]:
    """Cut `count` texts, and return them with their lengths in tokens. Seeded: every call gives the same."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rng = np.random.default_rng(0)
    wanted = np.clip(rng.lognormal(np.log(MEDIAN), SPREAD, count), SHORTEST, LONGEST).astype(int)
    source = " ".join(_sentences())
    stream = tokenizer.encode(source, add_special_tokens=False)
    made, at = [], 0
    for length in wanted:
        if at + length > len(stream):
            at = 0
        first, last = stream.offsets[at], stream.offsets[at + length - 3]  # two more come with [CLS] and [SEP]
        made.append(source[first[0] : last[1]])
        at += length
    return made, [len(encoding.ids) for encoding in tokenizer.encode_batch(made)]


def _sentences() -> list[str]:
    """Read the demo's English sentences in a random order that is always the same."""
    found = []
    for name in _ENGLISH:
        for line in (_SENTENCES / f"{name}.jsonl").read_text().splitlines():
            found.append(json.loads(line)["text"])
    random.Random(0).shuffle(found)
    return found
