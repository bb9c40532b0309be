"""`head.safetensors`: the linear layer of a head, checked against its spec."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.heads import Head, outputs
from fmplex_worker.adapters.files import placed, read_tensors, shapes


@dataclass(frozen=True, slots=True, eq=False)
class LoadedHead:
    """A head ready to run: `weight` `[outputs, hidden]` and `bias` `[outputs]`, float32; None when it has no weights.

    `number` is never reused.
    """

    number: int
    spec: Head
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.weight, self.bias) if t is not None)


def load_head(
    spec: Head, data: bytes | None, hidden: int, causal: bool, device: torch.device, number: int
) -> LoadedHead:
    """Raises `PackageRejected`: missing, unknown or ill-shaped tensors, values not finite, pooling that sees nothing."""
    if causal and getattr(spec, "pooling", None) == "cls":
        raise PackageRejected(
            "pooling 'cls' reads the first token, which sees nothing of the text in a causal backbone; use 'last'",
            field="head.pooling",
        )
    rows = outputs(spec)
    if not rows:
        return LoadedHead(number, spec)
    if data is None:
        raise PackageRejected(f"a {spec.kind} head needs head.safetensors", field="head")
    tensors = read_tensors(data, "head.safetensors", "head")
    wanted = {"weight": (rows, hidden), "bias": (rows,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "weight" not in found or any(wanted.get(name) != shape for name, shape in found.items()):
        raise PackageRejected(
            f"head.safetensors holds {shapes(tensors)}; this {spec.kind} head needs weight ({rows}, {hidden}) and, if it has "
            f"one, bias ({rows},)",
            field="head",
        )
    placed_ = {
        name: placed(t, f"head.safetensors: {name}", torch.float32, device, "head") for name, t in tensors.items()
    }
    return LoadedHead(number, spec, placed_["weight"], placed_.get("bias", torch.zeros(rows, device=device)))
