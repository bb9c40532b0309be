"""Memory of a micro-batch: what its layers keep for their backward, measured on short texts, and how many may keep it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fmplex_broker.errors import TooLarge
from fmplex_worker.backbones.texts import Text
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.pace import Pace
from fmplex_worker.tuning.units import MicroBatch
from fmplex_worker.tuning.walk import Walk

_SHORT = 16  # tokens of the shortest of the texts that are measured


class _Layer(NamedTuple):
    """Bytes that a layer keeps: so many in any case, so many a token, and so many for each pair of tokens of a text."""

    always: float
    token: float
    pair: float


class Activations:
    """Bytes that training takes until its micro-batch has ended, beside what is learnt and the loss itself (logits!)."""

    def __init__(self, walk: Walk, learnt: Learnt) -> None:
        short = max(1, min(_SHORT, walk.backbone.max_tokens // 3))
        measured = [_measured(walk, learnt, times * short) for times in (1, 2, 3)]
        self._layers = [_fitted(short, *sizes) for sizes in zip(*measured, strict=True)]
        embedded = walk.backbone.model.config.hidden_size  # type: ignore[union-attr]
        self._input = int(embedded) * walk.backbone.dtype.itemsize  # type: ignore[arg-type]

    def saved(self, tokens: int, longest: int, keep: int) -> int:
        """Predict the bytes of a micro-batch of so many tokens, in texts of `longest` at most, whose `keep` last layers keep
        their activations. Of the others one at a time is computed again."""
        sizes = [layer.always + tokens * (layer.token + layer.pair * longest) for layer in self._layers]
        again = len(sizes) - keep
        return int(tokens * self._input * (again + 1) + sum(sizes[again:]) + max(sizes[:again], default=0.0))

    def layers_kept(self, tokens: int, longest: int, budget: int) -> int:
        """Return how many layers may keep their activations within `budget` bytes. Raises `TooLarge` if not even one text after
        the other fits with all of them computed again."""
        for keep in range(len(self._layers), -1, -1):
            if self.saved(tokens, longest, keep) <= budget:
                return keep
        least = self.saved(tokens, longest, 0)
        raise TooLarge(
            f"to learn from {tokens} tokens at once, in texts of up to {longest}, takes {least:,} bytes, and there are "
            f"{budget:,}; shorten or cut the texts, or raise worker.tuning.bytes",
            field="worker.tuning.bytes",
        )


def _fitted(short: int, once: int, twice: int, thrice: int) -> _Layer:
    """Fit what a layer keeps of texts of `short` tokens, of twice and three times as many."""
    pair = max(0.0, (thrice - 2 * twice + once) / (2 * short**2))
    token = (thrice - once) / (2 * short) - 4 * pair * short
    return _Layer(max(0.0, once - token * short - pair * short**2), token, pair)


def _measured(walk: Walk, learnt: Learnt, tokens: int) -> list[int]:
    """Measure the bytes that each layer keeps of one text."""
    ids = np.arange(tokens) % walk.backbone.embeddings.num_embeddings
    batch = MicroBatch(walk, learnt, [Text.of_ids(ids)], torch.sum, keep=walk.layers, key=DropoutKey(0, 0))
    held = {tensor.data_ptr() for tensor in (*walk.backbone.model.parameters(), *walk.backbone.model.buffers())}
    layers = []
    for unit in batch.units(Pace(most=1)):
        if unit.kind != "forward":
            break
        with _counting(held) as sizes:
            unit.run()
        layers.append(sum(sizes))
    return layers


@contextmanager
def _counting(held: set[int]) -> Iterator[list[int]]:
    """Collect the bytes of what autograd keeps until the block ends, of tensors whose memory is not `held` already."""
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in held:
            held.add(memory.data_ptr())
            sizes.append(memory.nbytes())
        return tensor.detach()  # the tensor itself may be what the graph gives, which would hold itself for ever

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes
