"""New adapters, as PEFT begins them: they change nothing yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fitting import Ia3Spec, LoraSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.linear import Target
from fmplex_worker.tuning.learnt import Learnt, stable_seed
from fmplex_worker.tuning.walk import blocks_of


def fresh_lora(backbone: Backbone, spec: LoraSpec, seed: int, *, generates: bool = False) -> Learnt:
    """Make a LoRA. `generates`: for the whole language model, not the bare one. Raises `InvalidInput` (`lora.targets`)."""
    modules = _targets(backbone, spec.targets, "lora.targets", generates)
    options = _options(backbone, modules, generates) | {
        "peft_type": "LORA",
        "r": spec.r,
        "lora_alpha": spec.alpha if spec.alpha is not None else 2 * spec.r,
        "lora_dropout": spec.dropout,
        "bias": "none",
    }
    tensors: dict[str, Tensor] = {}
    for module, target in modules.items():
        stem = f"base_model.model.{module}"
        generator = torch.Generator().manual_seed(stable_seed(seed, stem))
        bound = target.inputs**-0.5
        a = torch.empty(spec.r, target.inputs).uniform_(-bound, bound, generator=generator)
        tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": torch.zeros(target.outputs, spec.r)}
    return Learnt(backbone, options, tensors, spec.dropout)


def fresh_ia3(backbone: Backbone, spec: Ia3Spec, *, generates: bool = False) -> Learnt:
    """Make an (IA)³, all ones. `generates`: for the whole language model, not the bare one.

    Raises `InvalidInput` (`ia3.targets`, `ia3.feedforward`).
    """
    modules = _targets(backbone, spec.targets, "ia3.targets", generates)
    inputs = [module for module in modules if _is_called(module, spec.feedforward)]
    for name in spec.feedforward:
        if not any(_is_called(module, (name,)) for module in modules):
            raise _unknown(name, modules, "ia3.feedforward")
    tensors = {
        f"base_model.model.{module}.ia3_l": torch.ones((1, t.inputs) if module in inputs else (t.outputs, 1))
        for module, t in modules.items()
    }
    options = _options(backbone, modules, generates) | {"peft_type": "IA3", "feedforward_modules": inputs}
    return Learnt(backbone, options, tensors)


def _targets(backbone: Backbone, wanted: Sequence[str] | None, field: str, generates: bool) -> dict[str, Target]:
    """Map the linears of the blocks, or those that are `wanted`, whole or by last parts, by their names in the model that PEFT
    wraps. The language-model head is one only if it is wanted."""
    prefix, _ = blocks_of(backbone.model)
    inside = f"{backbone.prefix}" if generates else ""  # the whole language model has the bare one in it
    linears = {f"{inside}{path}": t for path, t in backbone.targets.items() if path.startswith(f"{prefix}.")}
    if wanted is None:
        return linears
    head = backbone.lm_head
    if generates and head is not None and (target := backbone.target(head.path)) is not None:
        linears[head.path] = target
    for name in wanted:
        if not any(_is_called(module, (name,)) for module in linears):
            raise _unknown(name, linears, field)
    return {module: target for module, target in linears.items() if _is_called(module, wanted)}


def _is_called(module: str, names: Sequence[str]) -> bool:
    return any(f".{module}".endswith(f".{name}") for name in names)


def _unknown(name: str, modules: dict[str, Target], field: str) -> InvalidInput:
    known = sorted({module.rsplit(".", 1)[-1] for module in modules})
    return InvalidInput(f"{field}: no linear layer of the blocks is called {name!r}; there are {known}", field=field)


def _options(backbone: Backbone, modules: dict[str, Target], generates: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "target_modules": [*modules],
        "fan_in_fan_out": backbone.family.model_type == "gpt2",  # in PEFT's eyes its linears are Conv1D
        "inference_mode": True,
    }
    return options | {"task_type": "CAUSAL_LM"} if generates else options
