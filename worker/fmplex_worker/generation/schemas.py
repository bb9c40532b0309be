"""Text that has to match a JSON schema: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from fmplex_broker.errors import InvalidInput, JobFailed

_KEPT = 64  # compiled schemas
# White space as `json.dumps` sets it: where any is allowed, small models fill lines with it for ever.
_AS_DUMPED: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraint:
    """One row's grammar and where it stands in it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> None:
        """`[vocabulary]`, in place: minus infinity where a token may not come now."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = torch.from_numpy(bits[: len(logits)].astype(np.bool_)).to(logits.device)
        logits[: len(allowed)].masked_fill_(~allowed, float("-inf"))
        logits[len(allowed) :] = float("-inf")

    def took(self, token: int) -> None:
        """Raises `JobFailed` for a token that the mask had excluded."""
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise JobFailed(f"the text left its schema: {self._matcher.get_error()}")

    @property
    def ended(self) -> bool:
        """Nothing more may come."""
        return bool(self._matcher.is_stopped())


class Schemas:
    """Compiles schemas for one tokenizer and keeps the last ones. Any thread."""

    def __init__(self, tokenizer_json: str, vocabulary: int, ends: Collection[int]) -> None:
        """`vocabulary`: columns of the logits; `ends`: tokens that end a text."""
        self._json, self._vocabulary, self._ends = tokenizer_json, vocabulary, sorted(ends)
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, schema: dict[str, Any]) -> Constraint:
        """For one row. Raises `InvalidInput` for a schema that is none, or that cannot be served."""
        text = json.dumps(schema, sort_keys=True)
        with self._lock:
            matcher = self._kept.pop(text, None) or self._compile(text)
            self._kept[text] = matcher
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return Constraint(matcher.deep_copy())

    def _compile(self, schema: str) -> LLMatcher:
        if not self._ends:
            raise InvalidInput(
                "this backbone has no end-of-text token, so a schema could not end", field="params.schema"
            )
        if self._tokenizer is None:  # about a second, for whoever comes first
            self._tokenizer = LLTokenizer(self._json, n_vocab=self._vocabulary, eos_token=self._ends)
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, defaults=_AS_DUMPED)
            matcher = LLMatcher(self._tokenizer, grammar)
        except ValueError as e:
            raise InvalidInput(f"schema: {e}", field="params.schema") from e
        if matcher.is_error():
            raise InvalidInput(f"schema: {matcher.get_error()}", field="params.schema")
        return matcher
