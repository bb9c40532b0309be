"""One vector a text, from a packed row: no padding, no mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_broker.heads import Pooling


def pool(hidden: Tensor, starts: Sequence[int], lengths: Sequence[int], how: Sequence[Pooling | None]) -> Tensor:
    """hidden `[tokens, width]` → `[texts, width]` float32: `how[i]` for text i; None where nobody reads the row.

    The mean is taken by `embedding_bag` over the texts' bounds: 0.07 ms for 32 texts of 60 tokens of 768, where
    `segment_reduce` takes 1.07 ms, and in a fixed order also on CUDA.
    """
    first = torch.tensor(starts, device=hidden.device)
    if "mean" in how:
        every = torch.arange(hidden.shape[0], device=hidden.device)
        pooled = functional.embedding_bag(every, hidden.float(), first, mode="mean")
    else:
        pooled = hidden.new_zeros(len(starts), hidden.shape[1], dtype=torch.float32)
    last = first + torch.tensor(lengths, device=hidden.device) - 1
    for kind, places in (("cls", first), ("last", last)):
        rows = [i for i, wanted in enumerate(how) if wanted == kind]
        if rows:
            pooled[rows] = hidden[places[rows]].float()
    return pooled
