"""The linear layers of many heads over the rows of one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fmplex_worker.heads.loading import LoadedHead

# Measured on one CPU core, hidden 768: for 32 heads of 4 outputs one padded bmm takes 21 µs, 32 matmuls 75 µs; from about
# 64 outputs on, stacking the weights eats the gain (100 outputs: 430 against 483 µs, and memory with it).
_BMM_OUTPUTS = 64
_BMM_PADDING = 2.0  # padded rows / rows


def apply_heads(rows: Tensor, heads: Sequence[LoadedHead], counts: Sequence[int]) -> Tensor:
    """rows `[n, hidden]` float32, of which the next `counts[i]` belong to `heads[i]`, all of k outputs → `[n, k]`."""
    widest, total = max(counts), sum(counts)
    weights = [_weights(head) for head in heads]
    stackable = weights[0][0].shape[0] <= _BMM_OUTPUTS and len(heads) * widest <= _BMM_PADDING * total
    if len(heads) == 1 or not stackable:
        parts = zip(torch.split(rows, list(counts)), weights, strict=True)
        return torch.cat([torch.addmm(bias, part, weight.t()) for part, (weight, bias) in parts])
    weight = torch.stack([w for w, _ in weights])
    bias = torch.stack([b for _, b in weights]).unsqueeze(1)
    if len(heads) * widest == total:
        padded = rows.view(len(heads), widest, -1)
        return torch.baddbmm(bias, padded, weight.transpose(1, 2)).flatten(0, 1)
    used = torch.tensor([i * widest + j for i, n in enumerate(counts) for j in range(n)], device=rows.device)
    padded = rows.new_zeros(len(heads), widest, rows.shape[1])
    padded.view(-1, rows.shape[1])[used] = rows
    return torch.baddbmm(bias, padded, weight.transpose(1, 2)).flatten(0, 1)[used]


def _weights(head: LoadedHead) -> tuple[Tensor, Tensor]:
    assert head.weight is not None
    assert head.bias is not None
    return head.weight, head.bias
