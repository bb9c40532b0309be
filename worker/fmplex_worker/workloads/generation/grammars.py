"""Grammars: JSON schemas as llguidance compiles them. Without torch: `sandbox_child` imports it too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

# White space as `json.dumps` sets it: where any is allowed, small models fill lines with it for ever.
_AS_DUMPED: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TRIED = 8  # tokens; most grammars that are too large for llguidance die within the first three


def tokenizer_of(tokenizer_json: str, vocabulary: int, ends: Collection[int]) -> LLTokenizer:
    """Make llguidance's tokenizer, which takes about a second for large vocabularies."""
    return LLTokenizer(tokenizer_json, n_vocab=vocabulary, eos_token=sorted(ends))


def compiled(tokenizer: LLTokenizer, schema: str) -> LLMatcher:
    """Compile a schema. Raises `ValueError` for one that llguidance does not take."""
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(schema, defaults=_AS_DUMPED), log_level=0)
    _check(matcher)
    return matcher


def try_out(matcher: LLMatcher) -> None:
    """Go some tokens of two texts far. Raises `ValueError` where the grammar dies."""
    for pick in (0, -1):
        walker = matcher.deep_copy()
        for _ in range(_TRIED):
            allowed = np.flatnonzero(np.unpackbits(allowed_tokens(walker), bitorder="little"))
            _check(walker)
            if walker.is_stopped() or not len(allowed):
                break
            walker.consume_token(int(allowed[pick]))
            _check(walker)


def allowed_tokens(matcher: LLMatcher) -> Any:
    """Return which tokens may come next: a bit a token, as an array of bytes."""
    return np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)


def complaint(matcher: LLMatcher) -> str:
    """Return llguidance's error, without its internal state, which follows in lines of its own."""
    return next(iter(matcher.get_error().splitlines()), "")


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ValueError(complaint(matcher))
