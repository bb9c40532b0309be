"""Slices of the training part: what is fitted on, what is validated on, and the batches of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fmplex_worker.tuning.encoder import EncodedExample

VALIDATION_EVERY = 5  # one training example in five validates


class ValidationSplit(NamedTuple):
    """Positions in the training part: those to fit on, and those to validate on."""

    fit: list[int]
    validate: list[int]


def validation_split(items: Sequence[EncodedExample], generator: torch.Generator) -> ValidationSplit:
    """Choose a fifth of the training part for validation, at random but in proportion to the strata. The only example of its
    stratum is always trained on."""
    size = Counter(item.stratum for item in items)
    shuffled = torch.randperm(len(items), generator=generator).tolist()
    candidates = sorted((i for i in shuffled if size[items[i].stratum] > 1), key=lambda i: items[i].stratum)
    # Regression values rarely repeat: if nothing does, any example may validate.
    validate = sorted((candidates if len(candidates) >= VALIDATION_EVERY else shuffled)[2::VALIDATION_EVERY])
    return ValidationSplit([i for i in range(len(items)) if i not in set(validate)], validate)


def batches(strata: Sequence[str], size: int, partners: bool, generator: torch.Generator) -> list[list[int]]:
    """Make one epoch's batches of positions in random order; with `partners`, for losses that compare, examples of one stratum
    come in twos."""
    order = torch.randperm(len(strata), generator=generator).tolist()
    if partners:
        order = _in_twos(order, strata, generator)
    return [order[at : at + size] for at in range(0, len(order), size)]


def _in_twos(order: list[int], strata: Sequence[str], generator: torch.Generator) -> list[int]:
    waiting: dict[str, int] = {}
    twos: list[tuple[int, ...]] = []
    for i in order:
        if strata[i] in waiting:
            twos.append((waiting.pop(strata[i]), i))
        else:
            waiting[strata[i]] = i
    twos += [(i,) for i in waiting.values()]
    return [i for at in torch.randperm(len(twos), generator=generator).tolist() for i in twos[at]]
