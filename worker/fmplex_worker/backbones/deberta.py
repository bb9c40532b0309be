"""DeBERTa-v2 and v3 on a packed row: attention that scores content against positions as well (He et al. 2021).

Positions go through linears too (in v3 those of queries and keys themselves), which an adapter may change. So the scores of
a text depend on its adapter, and texts are taken together by length and adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from fmplex_worker.backbones import biased
from fmplex_worker.packed.linear import AdaptedLinear
from fmplex_worker.packed.row import Pack, Run, current
from fmplex_worker.packed.segments import Adapter


class _Group(NamedTuple):
    """Neighbouring texts of one length and one adapter. `forth`, `back` `[length, length]`: the row of the relative embeddings
    for query and key, and for key and query; None without relative attention."""

    run: Run
    adapter: Adapter | None
    forth: Tensor | None
    back: Tensor | None


def adapt(model: nn.Module) -> None:
    """Make a loaded `DebertaV2Model` attend text by text. Module names, and so adapters, stay as they are."""
    encoder: Any = model.encoder
    encoder.get_rel_pos = MethodType(_groups, encoder)
    encoder.get_attention_mask = lambda mask: mask  # it would be as large as the row squared
    for layer in encoder.layer:
        layer.attention.self.forward = MethodType(_attend, layer.attention.self)
    if encoder.conv is not None:
        encoder.conv.forward = MethodType(_convolve, encoder.conv)


def _groups(encoder: Any, hidden: Tensor, *_: Any) -> list[_Group]:
    """Lay out the groups of the pass, once for all layers."""
    groups = []
    for run, adapter in _runs(current()):
        forth = back = None
        if encoder.relative_attention:
            texts = hidden.new_empty(run.length, 0)
            distance = build_relative_position(texts, texts, encoder.position_buckets, encoder.max_relative_positions)
            span = encoder.rel_embeddings.num_embeddings // 2
            forth, back = (torch.clamp(by + span, 0, 2 * span - 1)[0] for by in (distance, -distance))
        groups.append(_Group(run, adapter, forth, back))
    return groups


def _runs(pack: Pack) -> list[tuple[Run, Adapter | None]]:
    runs: list[tuple[Run, Adapter | None]] = []
    for start, length, adapter in zip(pack.starts, pack.lengths, pack.adapters, strict=True):
        if runs and runs[-1][0].length == length and runs[-1][1] is adapter:
            runs[-1] = runs[-1][0]._replace(texts=runs[-1][0].texts + 1), adapter
        else:
            runs.append((Run(start, 1, length), adapter))
    return runs


def _attend(
    attn: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: None = None,
    relative_pos: list[_Group] | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Replace `DisentangledSelfAttention.forward`, for hidden `[1, tokens, width]`; `relative_pos`: what `_groups` made."""
    assert relative_pos is not None
    q, k, v = (linear(hidden_states) for linear in (attn.query_proj, attn.key_proj, attn.value_proj))
    scale = 1 / sqrt(attn.attention_head_size * (1 + ("c2p" in attn.pos_att_type) + ("p2c" in attn.pos_att_type)))
    biases, of_positions = [], _positions(attn, rel_embeddings)
    for group in relative_pos:
        queries, keys = (biased.heads_of(t[0], group.run, attn.num_attention_heads) for t in (q, k))
        biases.append(_bias(group, queries, keys, of_positions) * scale)
    runs = [group.run for group in relative_pos]
    return biased.attend(runs, (q, k, v), biases, attn.num_attention_heads, scale), None


# Positions as keys and as queries, `[heads, 2 · span, size]` each, as texts of an adapter see them; None where there are none.
_Positions = Callable[[Adapter | None], tuple[Tensor | None, Tensor | None]]


def _positions(attn: Any, table: Tensor | None) -> _Positions:
    """Return how the relative embeddings `[2 · span, width]` are projected; each adapter's once."""
    shared = attn.share_att_key
    made: dict[Adapter | None, tuple[Tensor | None, Tensor | None]] = {}

    def projected(kind: str, name: str, adapter: Adapter | None) -> Tensor | None:
        if table is None or kind not in attn.pos_att_type:
            return None
        linear = getattr(attn, name if shared else f"pos_{name}")
        rows = linear.alone(table, adapter) if isinstance(linear, AdaptedLinear) else linear(table)
        heads: Tensor = rows.view(rows.shape[0], attn.num_attention_heads, -1).transpose(0, 1)
        return heads

    def of(adapter: Adapter | None) -> tuple[Tensor | None, Tensor | None]:
        if adapter not in made:
            made[adapter] = projected("c2p", "key_proj", adapter), projected("p2c", "query_proj", adapter)
        return made[adapter]

    return of


def _bias(group: _Group, q: Tensor, k: Tensor, positions: _Positions) -> Tensor:
    """Score content against positions, for queries and keys `[texts, heads, length, size]` → `[texts, heads, length, length]`."""
    bias = q.new_zeros(*q.shape[:3], q.shape[2])
    keys, queries = positions(group.adapter)
    if keys is not None and group.forth is not None:
        bias = bias + (q @ keys.transpose(1, 2)).gather(-1, group.forth.expand_as(bias))
    if queries is not None and group.back is not None:
        bias = bias + (k @ queries.transpose(1, 2)).gather(-1, group.back.expand_as(bias)).transpose(-1, -2)
    return bias


def _convolve(conv: Any, hidden_states: Tensor, residual_states: Tensor, input_mask: Tensor) -> Tensor:
    """Replace `ConvLayer.forward` (v2 xlarge): a text's window ends where the text ends."""
    outs = []
    for run in biased.whole_runs():
        rows = hidden_states[0, run.start : run.start + run.texts * run.length].view(run.texts, run.length, -1)
        outs.append(conv.conv(rows.transpose(1, 2)).transpose(1, 2).flatten(0, 1))
    out: Tensor = conv.LayerNorm(residual_states + ACT2FN[conv.conv_act](torch.cat(outs).unsqueeze(0)))
    return out
