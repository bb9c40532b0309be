"""When to stop: scores on what is validated, and the best state so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fmplex_broker.errors import NonFiniteOutput


class Verdict(NamedTuple):
    """An evaluation: `score`, higher is better, and `loss`."""

    score: float
    loss: float


class EarlyStopping:
    """Keeper of the best state, which says when to stop: after `patience` epochs without a better score, or, at the same score,
    a lower validation loss. `best`: the best epoch; `state`: what to restore if that is what was wanted."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._best = (-math.inf, -math.inf)
        self.best = 0
        self.stopped = False
        self.state: Mapping[str, Tensor] = {}

    def note(self, epoch: int, verdict: Verdict, state: Mapping[str, Tensor]) -> bool:
        """Note an epoch after which the state was `state`, which is copied if it is the best. Returns whether it is."""
        rank = (verdict.score, -verdict.loss)
        better = rank > self._best
        if better:
            self._best, self.best = rank, epoch
            self.state = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.stopped = epoch - self.best >= self._patience
        return better

    def values(self) -> dict[str, Any]:
        """Return what is no tensor of what it knows, to be given to `restore`."""
        return {"rank": [*self._best] if self.state else None, "best": self.best, "stopped": self.stopped}

    def restore(self, values: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Take over what another one knew."""
        if values["rank"] is not None:
            self._best = (values["rank"][0], values["rank"][1])
        self.best, self.stopped, self.state = values["best"], values["stopped"], state


def finite(loss: Tensor, epoch: int) -> float:
    """Return the loss as a number. Raises `NonFiniteOutput` if training has diverged."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteOutput(
            f"training diverged in epoch {epoch} (loss {value}); lower learning_rate", field="learning_rate"
        )
    return value
