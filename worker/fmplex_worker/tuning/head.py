"""The head while it trains: as it trains best, and as it is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """A linear layer on standardised input whose output is in the target's unit: s·(W·(x−μ)/σ + b) + m; before it, any
    hidden layers with ReLU.

    The statistics make one learning rate right for every backbone and every target; `folded` takes them out again.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        rows: Tensor,
        outputs: int,
        scale: tuple[float, float],
        hidden: Sequence[int] = (),
        random: torch.Generator | None = None,
    ) -> None:
        """`rows` [n, hidden]: what the statistics are taken from. `scale`: m and s. `hidden`: widths of hidden layers, whose
        first weights are `random`."""
        super().__init__()
        widths = [rows.shape[1], *hidden]
        self.stack = nn.ModuleList(_layer(a, b, random) for a, b in pairwise(widths))
        self.linear = nn.utils.skip_init(nn.Linear, widths[-1], outputs)
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


def _layer(inputs: int, outputs: int, random: torch.Generator | None) -> nn.Linear:
    """Make a layer as `nn.Linear` does, but of a generator of its own: a worker's device thread draws other things meanwhile."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=random)
    nn.init.uniform_(layer.bias, -bound, bound, generator=random)
    return layer


def apply_head(head: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """Apply a head of these tensors (see `Head.folded`) to rows [n, hidden]."""
    for i in range(sum(name.startswith("hidden.") for name in head) // 2):
        rows = functional.linear(rows, head[f"hidden.{i}.weight"], head[f"hidden.{i}.bias"]).relu()
    return functional.linear(rows, head["weight"], head["bias"])
