"""The model families that are served, and the few facts in which they differ. One row a family; no row, no service.

A row is a promise: `tests/unit/compute/test_families.py` holds every one of them to the family contract (alone = packed,
PEFT = ours, a neighbour's NaN does not leak, a wrong adapter slot is noticed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from fmplex_broker.errors import InvalidInput
from fmplex_worker.backbones import gpt2, mpnet


@dataclass(frozen=True, slots=True)
class Family:
    """Facts of a family that packing needs; how each layer attends (causal, window) it says itself at run time.

    `pooler`: the class takes `add_pooling_layer` (ours is always off). `token_types`: texts of a pair are told apart by
    token type ids. `after_padding`: position ids start at padding_idx + 1, as in RoBERTa, instead of 0. `causal`: a token
    sees only what is before it, so that only the last one has seen the whole text. `adapt` changes a loaded model whose
    attention does not go through transformers' attention interface.
    """

    model_type: str
    pooler: bool = False
    token_types: bool = False
    after_padding: bool = False
    causal: bool = False
    adapt: Callable[[nn.Module], None] | None = None

    def first_position(self, config: Any) -> int:
        """Return the position id of a text's first token."""
        return int(config.pad_token_id) + 1 if self.after_padding else 0


FAMILIES: dict[str, Family] = {
    row.model_type: row
    for row in (
        Family("bert", pooler=True, token_types=True),
        Family("roberta", pooler=True, after_padding=True),
        Family("xlm-roberta", pooler=True, after_padding=True),
        Family("camembert", pooler=True, after_padding=True),
        Family("electra", token_types=True),
        Family("distilbert"),
        Family("modernbert"),
        Family("mpnet", pooler=True, after_padding=True, adapt=mpnet.adapt),
        Family("gpt2", causal=True, adapt=gpt2.adapt),
        Family("llama", causal=True),
        Family("qwen2", causal=True),
        Family("qwen3", causal=True),
        Family("mistral", causal=True),
    )
}


def family_of(config: Any) -> Family:
    """Return the row of a transformers config. Raises `InvalidInput` when the family, or this variant of it, is not served."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise _unserved(f"model type {config.model_type!r} is not served; use one of {', '.join(sorted(FAMILIES))}")
    if not family.causal and getattr(config, "is_decoder", False):
        raise _unserved(f"a {config.model_type} with is_decoder is not served; use the encoder, or a decoder family")
    if getattr(config, "quantization_config", None) is not None:
        raise _unserved("quantised checkpoints are not served; use the plain weights with a smaller dtype")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise _unserved(f"position_embedding_type {config.position_embedding_type!r} is not served; only 'absolute' is")
    # These pick frequencies by the longest text of the call, so an output would depend on who shares the pass.
    if unfit := {row["rope_type"] for row in rope_rows(config)} & {"dynamic", "longrope"}:
        raise _unserved(
            f"rope type {unfit.pop()!r} makes outputs depend on neighbours; use 'default', 'linear' or 'yarn'"
        )
    return family


def rope_rows(config: Any) -> list[dict[str, Any]]:
    """List what a config says of rotary positions, with its `rope_type`: one mapping for the model, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [row for row in (rope, *rope.values()) if isinstance(row, dict) and "rope_type" in row]


def _unserved(message: str) -> InvalidInput:
    return InvalidInput(message, field="backbone.model")
