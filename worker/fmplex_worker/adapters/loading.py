"""A PEFT LoRA folder, read as it is and fitted to a backbone. PEFT itself is not used: its hooks hold shared state."""

from __future__ import annotations

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.peft import LORA_TENSOR, LoraConfig, read_config
from fmplex_worker.adapters.files import placed, read_tensors
from fmplex_worker.adapters.linear import Target
from fmplex_worker.adapters.segments import Adapter, Factors
from fmplex_worker.backbones.backbone import Backbone

_POOLER = "pooler.dense"  # BERT's; never run here, because every head pools for itself


def load_adapter(config_json: bytes, weights: bytes, backbone: Backbone, number: int) -> Adapter:
    """Fit `adapter_config.json` and `adapter_model.safetensors` to this backbone; any thread.

    Raises `PackageRejected`: option not served, file broken, values not finite, or made for another backbone.
    """
    config = read_config(config_json)
    pairs = _pairs(read_tensors(weights, "adapter_model.safetensors", "adapter"))
    factors: list[Factors | None] = [None] * len(backbone.targets)
    for module, (a, b) in pairs.items():
        path = module.removeprefix(backbone.prefix) if module not in backbone.targets else module
        if path == _POOLER and backbone.family.pooler:
            _check_idle_pooler(b)
            continue
        target = backbone.targets.get(path)
        _check_shapes(module, a, b, target, config)
        assert target is not None
        dtype, device = backbone.spec.dtype, backbone.device
        factors[target.slot] = _factors(module, a, b, config.scaling(module), getattr(torch, dtype), device)
    if not any(factors):
        raise PackageRejected("the adapter changes no layer of the backbone; leave adapter/ out", field="adapter")
    return Adapter(number, tuple(factors))


def _pairs(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name → (A, B)."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = LORA_TENSOR.fullmatch(key)
        assert match is not None  # `check_adapter` has seen to it
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in sides.items():
        if len(pair) != 2:
            raise PackageRejected(f"adapter: {module} has lora_{next(iter(pair))} only; save it again", field="adapter")
        pairs[module] = pair["A"], pair["B"]
    return pairs


def _check_idle_pooler(b: Tensor) -> None:
    if b.any():
        raise PackageRejected(
            "the adapter changes the pooler, which is not run (heads pool hidden states themselves); "
            "train with exclude_modules=['pooler.dense']",
            field="adapter",
        )


def _check_shapes(module: str, a: Tensor, b: Tensor, target: Target | None, config: LoraConfig) -> None:
    made = f"{module} with lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}"
    if target is None:
        raise PackageRejected(
            f"adapter was made for another backbone: it changes {made}, and this one has no such layer", field="adapter"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise PackageRejected(f"adapter: {made} is no pair [rank, in], [out, rank]; save it again", field="adapter")
    if (a.shape[1], b.shape[0]) != (target.inputs, target.outputs):
        raise PackageRejected(
            f"adapter was made for another backbone: {made} fits a linear of {a.shape[1]} → {b.shape[0]}, "
            f"here it is {target.inputs} → {target.outputs}",
            field="adapter",
        )
    if a.shape[0] != config.rank(module):
        raise PackageRejected(
            f"adapter: {module} has rank {a.shape[0]}, adapter_config.json says {config.rank(module)} (r, rank_pattern)",
            field="adapter",
        )


def _factors(module: str, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype, device: torch.device) -> Factors:
    down = placed(a, f"{module}.lora_A", dtype, device, "adapter").t()
    up = placed((b.float() * scaling).t(), f"{module}.lora_B", dtype, device, "adapter")
    return Factors(down, up)
