"""The encoder of T5 on a packed row: as in MPNet, a learned bias for the distance of two tokens, and no other positions."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from fmplex_worker.backbones import biased


def adapt(model: nn.Module) -> None:
    """Make a loaded `T5EncoderModel` attend text by text. Module names, and so adapters, stay as they are."""
    t5: Any = model
    for block in t5.encoder.block:
        attn = block.layer[0].SelfAttention
        attn.forward = MethodType(_attend, attn)
    # The table that is looked up is the encoder's; `shared` has the same weights, and nothing reads it.
    del t5.shared
    t5.get_input_embeddings = MethodType(lambda self: self.encoder.embed_tokens, t5)


def _attend(
    attn: Any, hidden_states: Tensor, mask: None = None, position_bias: list[Tensor] | None = None, **_: Any
) -> tuple[Tensor, list[Tensor], None]:
    """Replace `T5Attention.forward`, for hidden `[1, tokens, width]`. The first layer makes the biases, `[1, heads, length,
    length]` for each run, which the others are given."""
    runs = biased.whole_runs()
    if position_bias is None:
        position_bias = [attn.compute_bias(run.length, run.length, device=hidden_states.device) for run in runs]
    qkv = [linear(hidden_states) for linear in (attn.q, attn.k, attn.v)]
    return attn.o(biased.attend(runs, qkv, position_bias, attn.n_heads, scale=1.0)), position_bias, None
