"""Pooling: one vector a text, from a packed row; no padding, no mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fmplex_broker.specs.heads import Pooling


def pool(hidden: Tensor, starts: Sequence[int], lengths: Sequence[int], how: Sequence[Pooling]) -> Tensor:
    """Pool hidden `[tokens, width]` to `[n, width]` float32: row i is `how[i]` over the `lengths[i]` tokens from `starts[i]` on.

    A text may come several times. The mean is taken by `embedding_bag` over the texts' tokens: 0.07 ms for 32 texts of 60
    tokens of 768, where `segment_reduce` takes 1.07 ms, and in a fixed order also on CUDA.
    """
    pooled = hidden.new_empty(len(how), hidden.shape[1], dtype=torch.float32)
    first, size = np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64)
    for kind in dict.fromkeys(how):
        at = np.array([i for i, wanted in enumerate(how) if wanted == kind])
        if kind == "mean":
            rows = _mean(hidden, first[at], size[at])
        else:
            places = first[at] if kind == "cls" else first[at] + size[at] - 1
            rows = hidden[torch.from_numpy(places).to(hidden.device)].float()
        if len(at) == len(how):
            return rows
        pooled[torch.from_numpy(at).to(hidden.device)] = rows
    return pooled


def _mean(hidden: Tensor, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Tensor:
    bounds = np.cumsum(lengths) - lengths
    tokens = np.arange(lengths.sum()) + np.repeat(starts - bounds, lengths)
    every, offsets = (torch.from_numpy(row).to(hidden.device) for row in (tokens, bounds))
    return functional.embedding_bag(every, hidden.float(), offsets, mode="mean")
