"""What pieces of texts cost, in units: a unit is what a token costs by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fmplex_worker.backbones.backbone import Backbone, Speech

_CHUNKS = 8  # prefill pieces of a full pass: small enough to share it, large enough not to be many
_LEAST_CHUNK = 16
_MEMORY_BOUND = (
    20.0  # a decoding token reads its context from memory, a prompt's tokens share what they read (CPU: 20 ×)
)


@dataclass(frozen=True, slots=True)
class Pricing:
    """`chunk`: tokens of a prefill piece; `reading`, `decoding`: how many tokens of context cost as much as one token does by
    itself, read by a token of a prompt and by one that is generated; `drawing`: units that it takes to draw a token."""

    chunk: int
    reading: float
    decoding: float
    drawing: float


def _is_table(path: str) -> bool:
    """Whether these weights are looked up, not multiplied with."""
    return "embed" in path or "wte" in path or "wpe" in path


def pricing_of(backbone: Backbone, speech: Speech) -> Pricing:
    """A token costs two operations a weight, and four a layer, head and token of context."""
    weights = sum(p.numel() for path, p in backbone.model.named_parameters() if p.ndim == 2 and not _is_table(path))
    config: Any = backbone.model.config
    reading = weights / (2 * speech.kv.layers * config.num_attention_heads * speech.kv.size)
    chunk = max(_LEAST_CHUNK, backbone.spec.pass_units // _CHUNKS)
    drawing = sum(p.numel() for p in speech.head.parameters()) / weights
    return Pricing(chunk, max(1.0, reading), max(1.0, reading / _MEMORY_BOUND), drawing)
