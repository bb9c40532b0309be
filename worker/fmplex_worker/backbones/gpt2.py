"""GPT-2 keeps its linear layers transposed (`Conv1D`); here they become linears like everybody's, which adapters know."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def adapt(model: nn.Module) -> None:
    """Turn `Conv1D` layers into linears, in place; outputs are the same."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            linear = nn.Linear(module.weight.shape[0], module.weight.shape[1], device="meta")
            linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            linear.bias = module.bias
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, linear)
