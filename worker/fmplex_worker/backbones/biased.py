"""Attention with a bias for each pair of tokens, for families that have an attention of their own in transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fmplex_worker.packed.row import Run, current


def whole_runs() -> list[Run]:
    """List the runs of the running pass of an encoder, whose texts are all whole."""
    runs = [run for run in current().runs if isinstance(run, Run)]
    assert len(runs) == len(current().runs), "an encoder keeps no keys and values"
    return runs


def heads_of(packed: Tensor, run: Run, heads: int) -> Tensor:
    """View a run's rows of `[tokens, width]` as `[texts, heads, length, size]`."""
    rows = packed[run.start : run.start + run.texts * run.length]
    return rows.view(run.texts, run.length, heads, -1).transpose(1, 2)


def attend(
    runs: Sequence[Run], qkv: Sequence[Tensor], biases: Sequence[Tensor], heads: int, scale: float | None = None
) -> Tensor:
    """Compute the attention of whole texts, run by run: queries, keys and values `[1, tokens, width]` → `[1, tokens, width]`.

    `biases`: what is added to the scores of each run, `[1 or texts, heads, length, length]`.
    """
    outs = []
    for run, bias in zip(runs, biases, strict=True):
        q, k, v = (heads_of(t[0], run, heads) for t in qkv)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.expand(run.texts, -1, -1, -1), scale=scale
        )
        outs.append(out.transpose(1, 2).reshape(run.texts * run.length, -1))
    return torch.cat(outs).unsqueeze(0)
