"""The layer of a backbone that a PEFT tensor means, and the errors when there is none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft_config import BASE_WEIGHT
from fmplex_broker.packages.peft_lora import SENTENCE_PREFIXES
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.linear import Target

_POOLERS = ("pooler.dense", "pooler")  # BERT's, ALBERT's; never run here, because every head pools for itself


def path_of(module: str, backbone: Backbone) -> str:
    """Return the module's name in the bare backbone: adapters made with a task class have its prefix (`bert.`, `model.`), those
    around a whole SentenceTransformer that of its first module (`0.model.`; `0.auto_model.` before version 6)."""
    if backbone.target(module) is not None:
        return module
    module = next((module.removeprefix(p) for p in SENTENCE_PREFIXES if module.startswith(p)), module)
    return module.removeprefix(backbone.prefix) if backbone.target(module) is None else module


def is_pooler(module: str, backbone: Backbone) -> bool:
    """Tell whether the module is the pooler, which is not run: it may come with an adapter that does not change it."""
    return backbone.family.pooler and path_of(module, backbone) in _POOLERS


def pooler_changed() -> PackageRejected:
    """Make the error for an adapter that changes the pooler."""
    return PackageRejected(
        "the adapter changes the pooler, which is not run (heads pool hidden states themselves); "
        "train with exclude_modules=['pooler.dense'] "
        "(ALBERT: ['pooler'])",
        field="adapter",
    )


def target_of(module: str, made: str, backbone: Backbone) -> Target:
    """Return the linear that the module is. Raises `PackageRejected` when there is none; `made`: the tensors, for its message."""
    target = backbone.target(path_of(module, backbone))
    if target is None:
        raise PackageRejected(
            f"adapter was made for another backbone: it changes {made}, and this one has no such linear layer",
            field="adapter",
        )
    return target


def check_bases(tensors: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Check the weights of the backbone that PEFT saves beside an adapter on its embeddings or its language-model head. Raises
    `PackageRejected` where they are others than the backbone's."""
    for key, base in tensors.items():
        if match := BASE_WEIGHT.fullmatch(key):
            _check_base(match["module"], base, backbone)


def _check_base(module: str, base: Tensor, backbone: Backbone) -> None:
    path, lm_head = path_of(module, backbone), backbone.lm_head
    if path == backbone.embeddings_path:
        what, weight = "embedding", backbone.embeddings.weight
    elif lm_head is not None and path == lm_head.path:
        what, weight = "language-model head", lm_head.head.weight  # type: ignore[assignment]
    else:
        raise PackageRejected(
            f"adapter: {module}.base_layer.weight is a whole weight of the backbone, which is not served; leave it out",
            field="adapter",
        )
    if base.shape != weight.shape or not torch.equal(base.to(weight), weight):
        raise PackageRejected(
            f"adapter: {module}.base_layer.weight is not the backbone's {what}; train without resizing or training it",
            field="adapter",
        )


def shape(tensor: Tensor) -> str:
    """Format a tensor's shape for messages."""
    return str(tuple(tensor.shape))


def nothing_changed() -> PackageRejected:
    """Make the error for an adapter that changes no layer."""
    return PackageRejected("the adapter changes no layer of the backbone; leave adapter/ out", field="adapter")
