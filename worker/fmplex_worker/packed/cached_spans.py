"""Attention of spans that go on from a slab: their tokens see what is in it, and each other up to themselves.

One kernel call a text. The queries that share a head of the keys (grouped-query attention) become queries of that head, so that
keys and values are read once and never repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmplex_worker.packed.row import CachedSpan
from fmplex_worker.packed.scores import Scores

Masks = dict[tuple[int, int, int | None], Tensor]


def attend(
    layer: int,
    span: CachedSpan,
    masks: Masks,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    window: int | None,
    scores: Scores,
) -> None:
    """Put the span's keys and values `[1, kv heads, tokens, size]` into its slab, and the attention of its queries
    `[1, heads, tokens, size]` into `out` `[1, tokens, heads, size]`."""
    n, past = span.length, span.past
    end, at = past + n, slice(span.start, span.start + n)
    keys, values = span.slab.data[layer]
    keys[:, past:end] = key[0, :, at]
    values[:, past:end] = value[0, :, at]
    heads, size = keys.shape[0], keys.shape[2]
    low = 0 if window is None else max(0, end - window - n + 1)
    k, v = keys[None, :, low:end], values[None, :, low:end]
    if n == 1:
        q = query[0, :, span.start].view(1, heads, -1, size)
        seen = scores.attend(q, k, v)
        out[0, span.start] = seen.view(-1, size)
        return
    q = query[0, :, at].reshape(heads, -1, n, size)
    k, v = (t[0, :, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    if low == past == 0 and (window is None or end <= window):
        seen = scores.attend(q, k, v, causal=True)
    else:
        mask = _mask(masks, n, past, low, window, query.device)
        seen = scores.attend(q, k, v, mask)
    out[0, at] = seen.view(-1, n, size).transpose(0, 1)


def _mask(masks: Masks, n: int, past: int, low: int, window: int | None, device: torch.device) -> Tensor:
    """Return the mask `[n, keys]` of queries from `past` on and keys from `low` on; made once a pass."""
    if (n, past, window) not in masks:
        distance = torch.arange(past, past + n, device=device)[:, None] - torch.arange(low, past + n, device=device)
        masks[n, past, window] = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
    return masks[n, past, window]
