"""AdamW (Loshchilov & Hutter 2019) whose rate is a function of the step, and whose moments can be saved and put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmplex_worker.tuning.objective import Group

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Schedule(NamedTuple):
    """A rate that rises linearly to `rate` during the share `warm` of all `steps`, and then falls linearly to `last` of it."""

    rate: float
    steps: int
    warm: float = 0.1
    last: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)

    def at(self, step: int) -> float:
        """Return the rate of a step, from 0."""
        warm = max(1, round(self.warm * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        return self.rate * (1 - (1 - self.last) * (step - warm) / max(1, self.steps - warm))


class Optimizer:
    """AdamW over groups of parameters; `halved`: at half the rate. Its moments are there from the start, so that no step can run
    out of memory half way."""

    def __init__(self, groups: Sequence[Group], schedule: Schedule) -> None:
        self.halved = False
        self._schedule, self._rates = schedule, [group.rate for group in groups]
        self._parameters = {name: p for group in groups for name, p in group.parameters.items()}
        self._adam = torch.optim.AdamW(
            [{"params": [*group.parameters.values()], "weight_decay": group.decay} for group in groups],
            lr=schedule.rate,
            betas=schedule.betas,
        )
        for parameter in self._parameters.values():
            zeros = [torch.tensor(0.0), torch.zeros_like(parameter), torch.zeros_like(parameter)]
            self._adam.state[parameter] = dict(zip(_MOMENTS, zeros, strict=True))

    def step(self, step: int) -> None:
        """Take a step, the number `step` from 0, along the gradients that the parameters have."""
        rate = self._schedule.at(step) * (0.5 if self.halved else 1.0)
        for group, times in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * times
        self._adam.step()

    def moments(self) -> dict[str, Tensor]:
        """Return the moments of all parameters; the next step changes them."""
        return {
            f"{name}.{kind}": self._adam.state[p][kind] for name, p in self._parameters.items() for kind in _MOMENTS
        }

    @torch.no_grad()
    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Put moments back."""
        for name, moment in self.moments().items():
            moment.copy_(moments[name])
