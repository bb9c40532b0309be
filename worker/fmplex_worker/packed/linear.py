"""Linear layers of a backbone, wrapped once at load so that a pass can apply its adapters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmplex_worker.packed.matmul import linear_for
from fmplex_worker.packed.row import current
from fmplex_worker.packed.segments import Adapter, Segments, apply_update, updated


class AdaptedLinear(nn.Module):
    """`base`, which also applies the running pass's adapters as linear number `slot`. It holds no state of any pass."""

    def __init__(self, base: nn.Linear, slot: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.in_features, self.out_features = base.in_features, base.out_features
        self.slot = slot

    def forward(self, x: Tensor) -> Tensor:
        """Apply the linear and its adapters: x `[1, rows, in]` → `[1, rows, out]`."""
        return adapted(x, self.weight, self.bias, current().segments, self.slot)

    def alone(self, x: Tensor, adapter: Adapter | None) -> Tensor:
        """Apply the linear as texts of one adapter see it, to rows that are not the pass's: x `[rows, in]` → `[rows, out]`."""
        if adapter is None:
            return functional.linear(x, self.weight, self.bias)
        by = adapter.inputs.get(self.slot)
        x = x if by is None else x * by
        y = functional.linear(x, self.weight, self.bias)
        if not adapter.updates or (update := adapter.updates[self.slot]) is None:
            return y
        if torch.is_grad_enabled():
            return updated(update, x if adapter.dropout is None else adapter.dropout(self.slot, x), y)
        apply_update(update, x, y)
        return y


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, slot: int) -> Tensor:
    """Apply a linear and what the adapters make of it as number `slot`: x `[1, rows, in]` → `[1, rows, out]`.

    With gradients nothing is written in place, and torch's own linear is taken: the faster one knows none.
    """
    if segments.inputs:
        x = segments.scaled(slot, x)
    if torch.is_grad_enabled():
        y = functional.linear(x, weight, bias)
        return segments.updated(slot, x, y) if segments.adapters else y
    y = linear_for(weight)(x, weight, bias)
    if segments.adapters:
        segments.add(slot, x, y)
    return y


@dataclass(frozen=True, slots=True)
class Target:
    """A linear that an adapter may change: its slot and its weight's shape."""

    slot: int
    inputs: int
    outputs: int


def wrap_linears(model: nn.Module) -> dict[str, Target]:
    """Replace every linear of `model`; return module path → target."""
    targets: dict[str, Target] = {}
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, AdaptedLinear(module, len(targets)))
            targets[path] = Target(len(targets), module.in_features, module.out_features)
    return targets
