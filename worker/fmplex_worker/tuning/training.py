"""What both ways of training share: the head while it trains, the validation slice, and when to stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fmplex_broker.errors import NonFiniteOutput
from fmplex_worker.tuning.encoder import Item

VALIDATION_EVERY = 5  # one training example in five validates

Report = Callable[[int, float, float], None]  # epoch (from 1), mean loss, validation score


class Slices(NamedTuple):
    """Positions in the training part."""

    fit: list[int]
    validate: list[int]


def slices(items: Sequence[Item], generator: torch.Generator) -> Slices:
    """A fifth of the training part for validation, at random but in proportion to the strata. The only example of its
    stratum is always trained on."""
    size = Counter(item.stratum for item in items)
    shuffled = torch.randperm(len(items), generator=generator).tolist()
    candidates = sorted((i for i in shuffled if size[items[i].stratum] > 1), key=lambda i: items[i].stratum)
    # Regression values rarely repeat: if nothing does, any example may validate.
    validate = sorted((candidates if len(candidates) >= VALIDATION_EVERY else shuffled)[2::VALIDATION_EVERY])
    return Slices([i for i in range(len(items)) if i not in set(validate)], validate)


class Head(nn.Module):
    """A linear layer on standardised input whose output is in the target's unit: s·(W·(x−μ)/σ + b) + m.

    The statistics make one learning rate right for every backbone and every target; `folded` takes them out again.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor, outputs: int, scale: tuple[float, float]) -> None:
        """`rows` [n, hidden]: what the statistics are taken from. `scale`: m and s."""
        super().__init__()
        self.linear = nn.Linear(rows.shape[1], outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        spread = rows.std(0, correction=0)
        self.register_buffer("mean", rows.mean(0))
        # A dimension that is constant here must not blow up where it is not.
        self.register_buffer("spread", spread.clamp(min=max(1e-6, 1e-2 * float(spread.mean()))))
        self.offset, self.factor = scale

    def forward(self, rows: Tensor) -> Tensor:
        standard: Tensor = self.linear((rows - self.mean) / self.spread)
        return standard * self.factor + self.offset

    def folded(self) -> dict[str, Tensor]:
        """`weight` [outputs, hidden] and `bias` [outputs] of the same function as one plain linear layer, float32 on the CPU."""
        weight = self.linear.weight.detach().double() / self.spread.double()
        bias = self.linear.bias.detach().double() - weight @ self.mean.double()
        folded = {"weight": weight * self.factor, "bias": bias * self.factor + self.offset}
        return {name: tensor.float().cpu().contiguous() for name, tensor in folded.items()}


class Stopper:
    """Keeps the best state and says when to stop: after `patience` epochs without a better score, or, at the same score,
    a lower validation loss."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best = (-math.inf, -math.inf)
        self.best_epoch = 0
        self.state: dict[str, Tensor] = {}

    def stop(self, epoch: int, score: float, loss: float, state: Mapping[str, Tensor]) -> bool:
        """`loss` is the validation loss, `state` what to restore if this epoch was the best."""
        if (score, -loss) > self._best:
            self._best, self.best_epoch = (score, -loss), epoch
            self.state = {name: tensor.detach().clone() for name, tensor in state.items()}
        return epoch - self.best_epoch >= self._patience


def finite(loss: Tensor, epoch: int) -> float:
    """The loss as a number. Raises `NonFiniteOutput` if training has diverged."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteOutput(
            f"training diverged in epoch {epoch} (loss {value}); lower learning_rate", field="learning_rate"
        )
    return value
