"""Constraints: JSON schemas as masks over the vocabulary, by llguidance."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Collection
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from fmplex_broker.errors import InvalidInput, JobFailed
from fmplex_worker.workloads.generation.grammars import allowed_tokens, compiled, complaint, tokenizer_of
from fmplex_worker.workloads.generation.sandbox import Refused
from fmplex_worker.workloads.generation.sandboxes import Sandboxes
from fmplex_worker.workloads.generation.schema_parts import joined, parts

T = TypeVar("T")
_KEPT = 64  # compiled schemas
_KNOWN = 4096  # schemas of which it is known whether they can be had
_MOST_MULTIPLE = (
    10_000  # its states are as many as the divisor is large, without its decimal point and zeros at its end
)


class Constraint:
    """Grammar of one sequence, and where it stands in it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, logits: Tensor) -> None:
        """Mask logits `[vocabulary]`, in place: minus infinity where a token may not come now."""
        bits = np.unpackbits(allowed_tokens(self._matcher), bitorder="little")
        allowed = torch.from_numpy(bits[: len(logits)].astype(np.bool_)).to(logits.device)
        logits[: len(allowed)].masked_fill_(~allowed, float("-inf"))
        logits[len(allowed) :] = float("-inf")

    def advance(self, token: int) -> None:
        """Go on by a token. Raises `JobFailed` for one that the mask had excluded."""
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise JobFailed(f"the schema is too much to go on with ({complaint(self._matcher)}); make it simpler")

    @property
    def ended(self) -> bool:
        """True if nothing more may come."""
        return bool(self._matcher.is_stopped())


class Schemas:
    """Compiles schemas for one tokenizer and keeps the last ones. Any thread. `vocabulary`: number of tokens; `ends`: those that
    end a text."""

    def __init__(self, sandbox: Sandboxes, tokenizer_json: str, vocabulary: int, ends: Collection[int]) -> None:
        self._sandbox = sandbox
        self._json, self._vocabulary, self._ends = tokenizer_json, vocabulary, ends
        self._tokenizer: LLTokenizer | None = None
        self._kept: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._known: OrderedDict[bytes, str] = OrderedDict()  # why it cannot be had; "": it can
        self._lock = threading.Lock()

    def constraint(self, schema: dict[str, Any], strict: bool) -> Constraint:
        """Make a constraint for one sequence. `strict`: all of the schema has to be kept. Raises `InvalidInput` for a schema that
        is none, or that cannot be served."""
        text = json.dumps(schema)  # in its order: the text has its properties in the same
        name = hashlib.blake2b(text.encode(), salt=b"strict" if strict else b"").digest()
        with self._lock:
            matcher = self._kept.pop(name, None)
        if matcher is None:
            matcher = self._compile(name, schema, text, strict)  # may take seconds; other schemas go on meanwhile
        with self._lock:
            _keep(self._kept, name, matcher, _KEPT)
        return Constraint(matcher.deep_copy())

    def _compile(self, name: bytes, schema: dict[str, Any], text: str, strict: bool) -> LLMatcher:
        if not self._ends:
            raise InvalidInput(
                "this backbone has no end-of-text token, so a schema could not end", field="params.schema"
            )
        # It may take all time and memory that there is: in another process first, once.
        with self._lock:
            why = self._known.pop(name, None)
        served = text
        if why is None:
            why = _too_much(schema)
            if not why:
                why, served = self._tried(text, strict)
        with self._lock:
            if why or served == text:  # what is served in another form is tried again, which says in which
                _keep(self._known, name, why, _KNOWN)
            if why:
                raise InvalidInput(f"schema: {why}", field="params.schema")
            if self._tokenizer is None:
                self._tokenizer = tokenizer_of(self._json, self._vocabulary, self._ends)
            tokenizer = self._tokenizer
        return compiled(tokenizer, served)

    def _tried(self, text: str, strict: bool) -> tuple[str, str]:
        """Try a schema in the sandbox; return why it cannot be had, "" if it can, and then the form in which it is served."""
        try:
            return "", self._sandbox.try_schema(text, strict)
        except Refused as e:
            return next(iter(str(e).splitlines()), "it cannot be compiled"), ""


def _keep(kept: OrderedDict[bytes, T], name: bytes, value: T, most: int) -> None:
    kept[name] = value
    if len(kept) > most:
        kept.popitem(last=False)


def _too_much(schema: Any) -> str:
    """Return why not even to try a schema, "" if it may be tried."""
    left = [("", schema)]
    while left:
        path, part = left.pop()
        left += [(joined(path, more), inner) for more, inner in parts(part)]
        divisor = part.get("multipleOf") if isinstance(part, dict) else None
        if isinstance(divisor, int | float) and _digits(divisor) > _MOST_MULTIPLE:
            named = f"property {path!r}: " if path else ""
            return f"{named}a multipleOf may be {_MOST_MULTIPLE} at most, without its decimal point; not {divisor}"
    return ""


def _digits(number: float) -> int:
    """Return a number without its decimal point, and without zeros at its end."""
    digits = Decimal(str(number)).as_tuple().digits
    return int("".join(map(str, digits)).rstrip("0") or "0")
