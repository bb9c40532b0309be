"""MPNet on a packed row. Its attention is its own in transformers, and adds a learned bias for the distance of two tokens.

transformers computes that bias for the whole row, `[heads, tokens, tokens]`; here it is one `[heads, length, length]` per
run of equally long texts, computed once a pass and handed down the layers in place of the other.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from fmplex_worker.backbones import biased


def adapt(model: nn.Module) -> None:
    """Make a loaded `MPNetModel` attend text by text. Module names, and so adapters, stay as they are."""
    encoder: Any = model.encoder
    encoder.compute_position_bias = MethodType(_biases, encoder)
    for layer in encoder.layer:
        layer.attention.attn.forward = MethodType(_attend, layer.attention.attn)


def _biases(encoder: Any, hidden: Tensor) -> list[Tensor]:
    """Compute the biases of each run of the pass, `[1, heads, length, length]` (MPNet, Song et al. 2020; buckets as in T5)."""
    biases = []
    for run in biased.whole_runs():
        place = torch.arange(run.length, device=hidden.device)
        bucket = encoder.relative_position_bucket(place[None, :] - place[:, None])
        biases.append(encoder.relative_attention_bias(bucket).permute(2, 0, 1).unsqueeze(0))
    return biases


def _attend(
    attn: Any, hidden_states: Tensor, attention_mask: None = None, position_bias: list[Tensor] | None = None, **_: Any
) -> tuple[Tensor]:
    """Replace `MPNetSelfAttention.forward`, for hidden `[1, tokens, width]`."""
    assert position_bias is not None
    qkv = [linear(hidden_states) for linear in (attn.q, attn.k, attn.v)]
    return (attn.o(biased.attend(biased.whole_runs(), qkv, position_bias, attn.num_attention_heads)),)
