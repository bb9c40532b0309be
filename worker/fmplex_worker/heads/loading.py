"""`head.safetensors`: the linear layer of a head, checked against its spec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fmplex_broker import specs
from fmplex_broker.errors import PackageRejected
from fmplex_worker.adapters.files import placed, read_tensors, shapes


@dataclass(frozen=True, slots=True, eq=False)
class LoadedHead:
    """A head ready to run: `weight` `[outputs, hidden]` and `bias` `[outputs]`, float32; None when it has no weights.

    `number` is never reused.
    """

    number: int
    spec: specs.Head
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.weight, self.bias) if t is not None)


def outputs(spec: specs.Head) -> int:
    """Rows of the head's weight; 0 for heads without weights."""
    match spec:
        case specs.Classification():
            return len(spec.labels)
        case specs.Tagging():
            return 1 + len(spec.labels)
        case specs.Regression() | specs.Ranking():
            return 1
        case _:
            return 0


def load_head(
    spec: specs.Head, path: Path | None, hidden: int, causal: bool, device: torch.device, number: int
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
    if path is None:
        raise PackageRejected(f"a {spec.kind} head needs head.safetensors", field="head")
    tensors = read_tensors(path, "head")
    wanted = {"weight": (rows, hidden), "bias": (rows,)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if "weight" not in found or any(wanted.get(name) != shape for name, shape in found.items()):
        raise PackageRejected(
            f"{path.name} holds {shapes(tensors)}; this {spec.kind} head needs weight ({rows}, {hidden}) and, if it has "
            f"one, bias ({rows},)",
            field="head",
        )
    placed_ = {name: placed(t, f"{path.name}: {name}", torch.float32, device, "head") for name, t in tensors.items()}
    return LoadedHead(number, spec, placed_["weight"], placed_.get("bias", torch.zeros(rows, device=device)))
