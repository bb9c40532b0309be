"""Grammars: JSON schemas as llguidance compiles them. Without torch: `sandbox_child` imports it too.

A keyword that llguidance does not know is left out, unless the caller is `strict`; an unknown `format` always is, as JSON Schema
has it: it is an annotation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from fmplex_worker.workloads.generation.schema_parts import (
    Part,
    changed,
    joined,
    parts,
    resolved,
    with_names_as_properties,
)

# White space as `json.dumps` sets it: where any is allowed, small models fill lines with it for ever.
_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
_TRIED = 8  # tokens; most grammars that are too large for llguidance die within the first three
_SOUGHT_S = 1.0  # for the property at fault
_ANNOTATION = "Unknown format"  # llguidance's warning


def tokenizer_of(tokenizer_json: str, vocabulary: int, ends: Collection[int]) -> LLTokenizer:
    """Make llguidance's tokenizer, which takes about a second for large vocabularies."""
    return LLTokenizer(tokenizer_json, n_vocab=vocabulary, eos_token=sorted(ends))


def compiled(tokenizer: LLTokenizer, schema: str) -> LLMatcher:
    """Compile a schema. Raises `ValueError` for one that llguidance does not take."""
    matcher = LLMatcher(tokenizer, _grammar(schema), log_level=0)
    _check(matcher)
    return matcher


def servable(text: str, strict: bool) -> str:
    """Return a schema as llguidance can keep it. Raises `ValueError` that names the property: it cannot be kept at all or, if
    `strict`, not in every part."""
    schema = with_names_as_properties(json.loads(text))
    if not strict:
        schema = changed(schema, _without_pattern)
    why = _wrong(schema, strict)
    if not why:
        return json.dumps(schema)
    path = _at_fault(schema, why, strict)
    lenient = strict and not _wrong(changed(schema, _without_pattern), strict=False)
    advice = "; leave it out, or send strict=false, and it is not kept" if lenient else ""
    raise ValueError(f"property {path!r}: {why}{advice}" if path else why + advice)


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


def _grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults=_OPTIONS)


def _wrong(schema: Any, strict: bool) -> str:
    """Say why a schema cannot be kept, or, if `strict`, what of it; "" if it can."""
    failed, said = LLMatcher.validate_grammar_with_warnings(_grammar(json.dumps(schema)))
    if failed:
        lines = said[0].splitlines() or ["it cannot be compiled"]
        # Of a pattern, the last line says what is wrong with it.
        return next((line for line in lines if line.startswith("error: ")), lines[0]).removeprefix("error: ")
    left_out = [warning.partition(" (")[0] for warning in said if not warning.startswith(_ANNOTATION)]
    return left_out[0] if strict and left_out else ""


def _without_pattern(schema: dict[str, Any]) -> dict[str, Any]:
    """Leave out a pattern that llguidance cannot take: with a look-ahead, for example."""
    pattern = schema.get("pattern")
    if not isinstance(pattern, str) or not _wrong({"type": "string", "pattern": pattern}, strict=False):
        return schema
    return {key: value for key, value in schema.items() if key != "pattern"}


def _at_fault(schema: Any, why: str, strict: bool) -> str:
    """Find the innermost property that is wrong for the same reason, by itself; "" if that is none."""
    until, seen, path = time.monotonic() + _SOUGHT_S, set[int](), ""
    shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
    at: Any = schema
    while id(at) not in seen:
        seen.add(id(at))
        inner = [Part("", target)] if (target := resolved(schema, at)) is not None else []
        # Definitions belong to whoever refers to them, who has a name.
        inner += parts({key: value for key, value in at.items() if key not in shared} if isinstance(at, dict) else at)
        for part in inner:
            alone = shared | part.schema if isinstance(part.schema, dict) else part.schema
            if time.monotonic() < until and _wrong(alone, strict) == why:
                path, at = joined(path, part.path), part.schema
                break
    return path
