"""The parts that both ways of training share: the head while it trains, the validation slice, and when to stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmplex_broker.errors import NonFiniteOutput
from fmplex_worker.tuning.encoder import EncodedExample

VALIDATION_EVERY = 5  # one training example in five validates

Report = Callable[[int, float, float], None]  # epoch (from 1), mean loss, validation score


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


class Head(nn.Module):
    """A linear layer on standardised input whose output is in the target's unit: s·(W·(x−μ)/σ + b) + m; before it, any
    hidden layers with ReLU.

    The statistics make one learning rate right for every backbone and every target; `folded` takes them out again.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, rows: Tensor, outputs: int, scale: tuple[float, float], hidden: Sequence[int] = ()) -> None:
        """`rows` [n, hidden]: what the statistics are taken from. `scale`: m and s. `hidden`: widths of hidden layers."""
        super().__init__()
        widths = [rows.shape[1], *hidden]
        self.stack = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.linear = nn.Linear(widths[-1], outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        spread = rows.std(0, correction=0)
        self.register_buffer("mean", rows.mean(0))
        # A dimension that is constant here must not blow up where it is not.
        self.register_buffer("spread", spread.clamp(min=max(1e-6, 1e-2 * float(spread.mean()))))
        self.offset, self.factor = scale

    def forward(self, rows: Tensor) -> Tensor:
        """Compute outputs [n, outputs] of rows [n, hidden]."""
        state = (rows - self.mean) / self.spread
        for layer in self.stack:
            state = layer(state).relu()
        standard: Tensor = self.linear(state)
        return standard * self.factor + self.offset

    def penalty(self) -> Tensor:
        """Sum all squared weights."""
        return torch.stack([layer.weight.square().sum() for layer in (*self.stack, self.linear)]).sum()

    def folded(self) -> dict[str, Tensor]:
        """Return the tensors of head.safetensors for the same function on plain input, float32 on the CPU."""
        layers = [
            (layer.weight.detach().double(), layer.bias.detach().double()) for layer in (*self.stack, self.linear)
        ]
        weight, bias = layers[0]
        weight = weight / self.spread.double()
        layers[0] = weight, bias - weight @ self.mean.double()
        weight, bias = layers.pop()
        folded = {"weight": weight * self.factor, "bias": bias * self.factor + self.offset}
        for i, (weight, bias) in enumerate(layers):
            folded |= {f"hidden.{i}.weight": weight, f"hidden.{i}.bias": bias}
        return {name: tensor.float().cpu().contiguous() for name, tensor in folded.items()}


def apply_head(head: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Apply a head of these tensors (see `Head.folded`) to rows [n, hidden]."""
    for i in range(sum(name.startswith("hidden.") for name in head) // 2):
        rows = functional.linear(rows, head[f"hidden.{i}.weight"], head[f"hidden.{i}.bias"]).relu()
    return functional.linear(rows, head["weight"], head["bias"])


class EarlyStopping:
    """Keeper of the best state, which says when to stop: after `patience` epochs without a better score, or, at the same score,
    a lower validation loss."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best = (-math.inf, -math.inf)
        self.best_epoch = 0
        self.state: dict[str, Tensor] = {}

    def stop(self, epoch: int, score: float, loss: float, state: Mapping[str, Tensor]) -> bool:
        """Note an epoch and tell whether to stop. `loss` is the validation loss, `state` what to restore if this epoch was the
        best."""
        if (score, -loss) > self._best:
            self._best, self.best_epoch = (score, -loss), epoch
            self.state = {name: tensor.detach().clone() for name, tensor in state.items()}
        return epoch - self.best_epoch >= self._patience


def finite(loss: Tensor, epoch: int) -> float:
    """Return the loss as a number. Raises `NonFiniteOutput` if training has diverged."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteOutput(
            f"training diverged in epoch {epoch} (loss {value}); lower learning_rate", field="learning_rate"
        )
    return value
