"""The one step of attention in which kernels differ: from queries and keys to weights.

torch's fused kernel takes everything but capped scores (Gemma 2), which are computed here, block by block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK = 256  # queries of which all scores are in memory at once


class Scores(NamedTuple):
    """How scores are made: `scale` of the products of queries and keys (None: 1/√size); `cap`: the value that they approach
    and never pass (None: no cap)."""

    scale: float | None = None
    cap: float | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Compute the attention of q `[…, queries, size]` to k and v `[…, keys, size]` → `[…, queries, size]`.

        `mask` `[queries, keys]`: what is seen; `causal`: query i sees keys 0 to i, of as many.
        """
        if self.cap is None:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        if causal:
            mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        blocks = range(0, q.shape[-2], _BLOCK)
        outs = [_capped(q[..., i : i + _BLOCK, :] * scale, k, v, self.cap, _part(mask, i)) for i in blocks]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -2)


def _part(mask: Tensor | None, first: int) -> Tensor | None:
    return None if mask is None else mask[first : first + _BLOCK]


def _capped(q: Tensor, k: Tensor, v: Tensor, cap: float, mask: Tensor | None) -> Tensor:
    scores = torch.tanh(q @ k.transpose(-1, -2) / cap) * cap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
