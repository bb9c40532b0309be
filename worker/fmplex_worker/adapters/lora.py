"""LoRA on linear layers and on the token embeddings (Hu et al. 2021), fitted to a backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft_lora import EMBEDDING_TENSOR, LORA_TENSOR, LoraConfig
from fmplex_worker.adapters.files import fitted_together
from fmplex_worker.adapters.targets import (
    check_bases,
    is_pooler,
    nothing_changed,
    path_of,
    pooler_changed,
    shape,
    target_of,
)
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.segments import Adapter, Factors

Tensors = Mapping[str, Tensor]


class _Pair(NamedTuple):
    """The two halves of a module's update, as PEFT has them: `a` `[rank, in]`, `b` `[out, rank]`."""

    module: str
    a: Tensor
    b: Tensor


def fit(config: LoraConfig, tensors: Tensors, backbone: Backbone, number: int) -> Adapter:
    """Fit LoRA factors to a backbone. Raises `PackageRejected`: halves missing, shapes or ranks that do not fit, values not
    finite."""
    alike: dict[tuple[torch.Size, torch.Size], dict[int, _Pair]] = {}  # shapes -> slot -> pair
    for pair in _pairs(tensors, LORA_TENSOR):
        if is_pooler(pair.module, backbone):
            if pair.b.any():
                raise pooler_changed()
            continue
        made = f"{pair.module} with lora_A {shape(pair.a)}, lora_B {shape(pair.b)}"
        target = target_of(pair.module, made, backbone)
        _check_shapes(made, pair, (target.inputs, target.outputs), config.rank(pair.module))
        alike.setdefault((pair.a.shape, pair.b.shape), {})[target.slot] = pair
    updates: list[Factors | None] = [None] * backbone.slots
    for pairs in alike.values():
        for slot, factors in zip(pairs, _factors([*pairs.values()], config, backbone), strict=True):
            updates[slot] = factors
    tokens = _tokens(config, tensors, backbone)
    check_bases(tensors, backbone)
    if not alike and tokens is None:
        raise nothing_changed()
    return Adapter(number, tuple(updates) if alike else (), tokens=tokens)


def _pairs(tensors: Tensors, pattern: re.Pattern[str]) -> Iterator[_Pair]:
    """Yield the pairs of the tensors whose names match. Raises `PackageRejected` when a half is missing."""
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := pattern.fullmatch(key):
            sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if len(pair) != 2:
            raise PackageRejected(f"adapter: {module} has lora_{next(iter(pair))} only; save it again", field="adapter")
        yield _Pair(module, pair["A"], pair["B"])


def _check_shapes(made: str, pair: _Pair, fits: tuple[int, int], rank: int) -> None:
    """Check a pair against its layer, whose (in, out) is `fits`, and the rank of the configuration."""
    a, b = pair.a, pair.b
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


def _factors(pairs: Sequence[_Pair], config: LoraConfig, backbone: Backbone) -> list[Factors]:
    """Fit pairs of one shape together, as parts of two tensors. One by one would take the interpreter from the running pass
    hundreds of times."""
    dtype = backbone.dtype
    scale = torch.tensor([config.scaling(pair.module) for pair in pairs]).view(-1, 1, 1)
    names = [f"{pair.module}.lora_A" for pair in pairs], [f"{pair.module}.lora_B" for pair in pairs]
    downs = fitted_together(torch.stack([pair.a for pair in pairs]), names[0], dtype, "adapter")
    scaled = torch.stack([pair.b for pair in pairs]).float() * scale
    ups = fitted_together(scaled.transpose(1, 2), names[1], dtype, "adapter")
    return [Factors(down, up) for down, up in zip(downs.transpose(1, 2).unbind(), ups.unbind(), strict=True)]


def _tokens(config: LoraConfig, tensors: Tensors, backbone: Backbone) -> Factors | None:
    """Fit the update of the token embeddings, if there is one: `down` `[tokens, rank]`, one row a token, and `up` `[rank,
    width]`."""
    table, found = backbone.embeddings, None
    for pair in _pairs(tensors, EMBEDDING_TENSOR):
        made = f"{pair.module} with lora_embedding_A {shape(pair.a)}, lora_embedding_B {shape(pair.b)}"
        if path_of(pair.module, backbone) != backbone.embeddings_path:
            raise PackageRejected(
                f"the adapter changes {made}; of embeddings only {backbone.embeddings_path} is served: target that and "
                "linear layers only",
                field="adapter",
            )
        _check_shapes(made, pair, (table.num_embeddings, table.embedding_dim), config.rank(pair.module))
        (found,) = _factors([pair], config, backbone)
        scale = getattr(table, "embed_scale", 1.0)  # Gemma's table scales what it gives, and PEFT what it adds
        found = Factors(found.down.contiguous(), found.up * scale)  # rows are looked up
    return found
