"""Pricing: the cost of pieces of texts in units, of which a token by itself costs one; and the cutting of prompts into pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from fmplex_worker.backbones.backbone import Backbone, LmHead
from fmplex_worker.protocol import Piece

_CHUNKS = 4  # pieces of a prompt in a full pass: small enough to share it, large enough not to be many
_LEAST_CHUNK = 16
# Measured on CPUs: an operation of attention takes as long as three of a matmul, and a token that is generated reads its context
# from memory, at ten times the cost of a prompt's tokens, which share what they read.
_ATTENTION, _DECODING = 3.0, 10.0


@dataclass(slots=True, eq=False)
class Pricing:
    """Prices of a backbone. `chunk`: units of a prefill piece; `reading`, `decoding`: tokens of context that cost as much as one
    token does by itself, read by a token of a prompt and by one that is generated; `drawing`: units that it takes to draw a
    token."""

    chunk: int
    reading: float
    decoding: float
    drawing: float

    def aim(self, pass_units: int) -> None:
        """Cut prompts for passes of so many units."""
        self.chunk = max(_LEAST_CHUNK, pass_units // _CHUNKS)

    def decode(self, context: int) -> Piece:
        """Return the piece of a token that is generated behind `context` others."""
        return Piece("decode", 1, round(1 + self.drawing + context / self.decoding))

    def prefill(self, first: int, at: int, end: int) -> Iterator[Piece]:
        """Cut the tokens from `at` up to `end`, the last of which draws, into as many pieces as a full pass has, at most. The
        tokens before `first` (a soft prompt's) are put in whole, with at least one behind them."""
        for _ in range(_CHUNKS):
            if at >= end:
                return
            fits = max(_LEAST_CHUNK, int(self.chunk / (1 + at / self.reading)))
            n = min(max(first - at, 0) + fits, end - at)
            yield Piece("prefill", n, self.units(at, n, draws=at + n == end))
            at += n

    def units(self, at: int, tokens: int, *, draws: bool = True) -> int:
        """Return the units of so many tokens of a prompt behind `at` others."""
        return ceil(tokens * (1 + (at + tokens / 2) / self.reading) + draws * self.drawing)


def _is_table(path: str) -> bool:
    """Tell whether these weights are looked up, not multiplied with."""
    return "embed" in path or "wte" in path or "wpe" in path


def pricing_of(backbone: Backbone, lm_head: LmHead) -> Pricing:
    """Price the tokens of a backbone: two operations a weight, and four a layer, head and token of context."""
    weights = sum(p.numel() for path, p in backbone.model.named_parameters() if p.ndim == 2 and not _is_table(path))
    config: Any = backbone.model.config
    reading = weights / (2 * lm_head.kv.layers * config.num_attention_heads * lm_head.kv.size * _ATTENTION)
    drawing = sum(p.numel() for p in lm_head.head.parameters()) / weights
    pricing = Pricing(0, max(1.0, reading), max(1.0, reading / _DECODING), drawing)
    pricing.aim(backbone.spec.pass_units)
    return pricing
