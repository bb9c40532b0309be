"""LoRA on linear layers and on the token embeddings (Hu et al. 2021), fitted to a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.peft_lora import BASE_EMBEDDING, EMBEDDING_TENSOR, LORA_TENSOR, LoraConfig
from fmplex_worker.adapters.files import placed
from fmplex_worker.adapters.segments import Adapter, Factors
from fmplex_worker.adapters.targets import is_idle_pooler, nothing_changed, path_of, shape, target_of
from fmplex_worker.backbones.backbone import Backbone

Tensors = Mapping[str, Tensor]


def fit(config: LoraConfig, tensors: Tensors, backbone: Backbone, number: int) -> Adapter:
    """Raises `PackageRejected`: halves missing, shapes or ranks that do not fit, values not finite."""
    updates: list[Factors | None] = [None] * len(backbone.targets)
    for module, (a, b) in _pairs(tensors, LORA_TENSOR).items():
        if is_idle_pooler(module, backbone, bool(b.any())):
            continue
        made = f"{module} with lora_A {shape(a)}, lora_B {shape(b)}"
        target = target_of(module, made, backbone)
        _check_shapes(made, a, b, (target.inputs, target.outputs), config.rank(module))
        updates[target.slot] = _factors(module, a, b, config, backbone)
    tokens = _tokens(config, tensors, backbone)
    if not any(updates) and tokens is None:
        raise nothing_changed()
    return Adapter(number, tuple(updates) if any(updates) else (), tokens=tokens)


def _pairs(tensors: Tensors, pattern: re.Pattern[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name → (A, B), of the tensors whose names match."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := pattern.fullmatch(key):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if len(pair) != 2:
            raise PackageRejected(f"adapter: {module} has lora_{next(iter(pair))} only; save it again", field="adapter")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _check_shapes(made: str, a: Tensor, b: Tensor, fits: tuple[int, int], rank: int) -> None:
    """`fits`: (in, out) of the layer."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise PackageRejected(f"adapter: {made} is no pair [rank, in], [out, rank]; save it again", field="adapter")
    if (a.shape[1], b.shape[0]) != fits:
        raise PackageRejected(
            f"adapter was made for another backbone: {made} fits a layer of {a.shape[1]} → {b.shape[0]}, "
            f"here it is {fits[0]} → {fits[1]}",
            field="adapter",
        )
    if a.shape[0] != rank:
        raise PackageRejected(
            f"adapter: {made} has rank {a.shape[0]}, adapter_config.json says {rank} (r, rank_pattern)", field="adapter"
        )


def _factors(module: str, a: Tensor, b: Tensor, config: LoraConfig, backbone: Backbone) -> Factors:
    dtype, device = getattr(torch, backbone.spec.dtype), backbone.device
    down = placed(a, f"{module}.lora_A", dtype, device, "adapter").t()
    up = placed((b.float() * config.scaling(module)).t(), f"{module}.lora_B", dtype, device, "adapter")
    return Factors(down, up)


def _tokens(config: LoraConfig, tensors: Tensors, backbone: Backbone) -> Factors | None:
    """The update of the token embeddings: `down` `[tokens, rank]`, one row a token, and `up` `[rank, width]`."""
    table, found = backbone.embeddings, None
    for module, (a, b) in _pairs(tensors, EMBEDDING_TENSOR).items():
        made = f"{module} with lora_embedding_A {shape(a)}, lora_embedding_B {shape(b)}"
        if path_of(module, backbone) != backbone.embeddings_path:
            raise PackageRejected(
                f"the adapter changes {made}; of embeddings only {backbone.embeddings_path} is served: target that and "
                "linear layers only",
                field="adapter",
            )
        _check_shapes(made, a, b, (table.num_embeddings, table.embedding_dim), config.rank(module))
        found = _factors(module, a, b, config, backbone)
        found = Factors(found.down.contiguous(), found.up)  # rows are looked up
    for key, base in tensors.items():
        if BASE_EMBEDDING.fullmatch(key) and not torch.equal(base.to(table.weight), table.weight):
            raise PackageRejected(
                f"adapter: {key} is not the backbone's embedding; train without resizing or training the embeddings",
                field="adapter",
            )
    return found
