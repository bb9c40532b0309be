"""(IA)³ vectors (Liu et al. 2022) on linear layers, fitted to a backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft_ia3 import IA3_TENSOR, Ia3Config
from fmplex_worker.adapters.files import fitted
from fmplex_worker.adapters.targets import check_bases, is_pooler, nothing_changed, pooler_changed, shape, target_of
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.segments import Adapter, Scale


def fit(config: Ia3Config, tensors: Mapping[str, Tensor], backbone: Backbone, number: int) -> Adapter:
    """Fit (IA)³ vectors to a backbone. Raises `PackageRejected`: shapes that do not fit, values not finite."""
    updates: list[Scale | None] = [None] * backbone.slots
    inputs: dict[int, Tensor] = {}
    for key, vector in tensors.items():
        match = IA3_TENSOR.fullmatch(key)
        if match is None:  # a weight of the backbone, see below: `check_adapter` lets nothing else through
            continue
        module = match["module"]
        if is_pooler(module, backbone):
            if (vector != 1).any():
                raise pooler_changed()
            continue
        target = target_of(module, f"{module} with ia3_l {shape(vector)}", backbone)
        feedforward = config.feedforward(module)
        _check_shape(module, vector, (1, target.inputs) if feedforward else (target.outputs, 1), feedforward)
        dtype = backbone.dtype
        by = fitted(vector.flatten(), f"{module}.ia3_l", dtype, "adapter")
        if feedforward:
            inputs[target.slot] = by
        else:
            updates[target.slot] = Scale(by)
    check_bases(tensors, backbone)
    if not inputs and not any(updates):
        raise nothing_changed()
    return Adapter(number, tuple(updates), inputs)


def _check_shape(module: str, vector: Tensor, wanted: tuple[int, int], feedforward: bool) -> None:
    if vector.shape != wanted:
        side = "input (feedforward_modules)" if feedforward else "output"
        raise PackageRejected(
            f"adapter: {module}.ia3_l is {shape(vector)}; for the {side} of this backbone's layer it must be {wanted}",
            field="adapter",
        )
