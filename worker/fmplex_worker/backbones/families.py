"""The model families that are served, and the few facts in which they differ. One row a family; no row, no service.

A row is a promise: `tests/unit/compute/test_families.py` holds every one of them to the family contract (alone = packed,
PEFT = ours, a neighbour's NaN does not leak, a wrong adapter slot is noticed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import AutoModel, AutoModelForTextEncoding

from fmplex_broker.errors import InvalidInput
from fmplex_worker.backbones import deberta, gpt2, mpnet, t5


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
    places: bool = True
    auto: Any = AutoModel
    overflows: bool = False
    adapt: Callable[[nn.Module], None] | None = None

    def first_position(self, config: Any) -> int:
        """Return the position id of a text's first token."""
        return int(config.pad_token_id) + 1 if self.after_padding else 0

    @property
    def options(self) -> dict[str, Any]:
        """What the class that loads the model takes beside what is common to all."""
        return {"add_pooling_layer": False} if self.pooler else {}


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
        Family("albert", pooler=True, token_types=True),
        Family("nomic_bert", token_types=True),
        Family("deberta-v2", token_types=True, adapt=deberta.adapt),
        Family("t5", places=False, auto=AutoModelForTextEncoding, overflows=True, adapt=t5.adapt),
        Family("gpt2", causal=True, adapt=gpt2.adapt),
        Family("llama", causal=True),
        Family("qwen2", causal=True),
        Family("qwen3", causal=True),
        Family("mistral", causal=True),
        Family("phi3", causal=True),
        Family("olmo2", causal=True),
        Family("granite", causal=True),
        Family("smollm3", causal=True),
        Family("gemma2", causal=True),
        Family("gemma3_text", causal=True),
    )
}


# What is served in another form, and what to do about it.
_OTHER_FORMS = {
    "gemma3": "it also reads images; save its text model alone (model_type 'gemma3_text') and use that",
    "deberta": "use a deberta-v2 (v3 is one too)",
}


def family_of(config: Any) -> Family:
    """Return the row of a transformers config. Raises `InvalidInput` when the family, or this variant of it, is not served."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        advice = _OTHER_FORMS.get(config.model_type, f"use one of {', '.join(sorted(FAMILIES))}")
        raise _unserved(f"model type {config.model_type!r} is not served; {advice}")
    if not family.causal and getattr(config, "is_decoder", False):
        raise _unserved(f"a {config.model_type} with is_decoder is not served; use the encoder, or a decoder family")
    if getattr(config, "quantization_config", None) is not None:
        raise _unserved("quantised checkpoints are not served; use the plain weights with a smaller dtype")
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        raise _unserved(f"position_embedding_type {config.position_embedding_type!r} is not served; only 'absolute' is")
    # It picks frequencies by the longest text of the call, so an output would depend on who shares the pass. So does longrope
    # beyond the positions it was trained with, and `limits` keeps texts within them.
    if any(row["rope_type"] == "dynamic" for row in rope_rows(config)):
        raise _unserved("rope type 'dynamic' makes outputs depend on neighbours; use 'default', 'linear' or 'yarn'")
    if getattr(config, "use_bidirectional_attention", False):
        return _bidirectional(family)
    return family


def _bidirectional(family: Family) -> Family:
    """Return the row of a decoder that was made an encoder (EmbeddingGemma)."""
    if family.model_type != "gemma3_text":
        raise _unserved(f"a {family.model_type} with use_bidirectional_attention is not served; only a gemma3_text is")
    return replace(family, causal=False)


def rope_rows(config: Any) -> list[dict[str, Any]]:
    """List what a config says of rotary positions, with its `rope_type`: one mapping for the model, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [row for row in (rope, *rope.values()) if isinstance(row, dict) and "rope_type" in row]


def _unserved(message: str) -> InvalidInput:
    return InvalidInput(message, field="backbone.model")
