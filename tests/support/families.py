"""Tests of every model family: a few of them in `make test`, all in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

# One of each way to attend and to place tokens; the others are variants of these.
OFTEN = frozenset({"bert", "roberta", "mpnet", "modernbert", "deberta-v2", "t5", "llama", "gemma3_text", "gpt2"})


def families(names: Iterable[str]) -> pytest.MarkDecorator:
    """Return the mark of a test that takes each `family` of these."""
    params = [name if name in OFTEN else pytest.param(name, marks=pytest.mark.long) for name in names]
    return pytest.mark.parametrize("family", params)
