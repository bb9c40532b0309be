"""`head.safetensors`: the layers of the heads of a vFM, checked against its spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.weights import check_head
from fmplex_broker.specs.heads import Embedding, Head, head_tensors, outputs
from fmplex_worker.adapters.files import fitted, read_tensors
from fmplex_worker.packed.placing import Place


class Layer(NamedTuple):
    """One layer of a head: `weight` `[out, in]`, `bias` `[out]`, float32."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LoadedHead:
    """A head ready to run; without `layers` when it has no weights. `number` is never reused."""

    number: int
    spec: Head
    layers: tuple[Layer, ...] = ()

    @property
    def form(self) -> tuple[object, ...]:
        """Form of the head: widths of the layers and what is between them. Heads of one form run together."""
        if isinstance(self.spec, Embedding):
            return ("embedding", *self.spec.projection, self.spec.activation)
        hidden = getattr(self.spec, "hidden", ())
        between = (getattr(self.spec, "activation", ""), getattr(self.spec, "norm", False)) if hidden else ()
        return (*hidden, outputs(self.spec), *between)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def placed(self, place: Place) -> LoadedHead:
        """Return the head with its tensors put where `place` puts them."""
        return replace(self, layers=tuple(Layer(*map(place, layer)) for layer in self.layers))


def load_heads(
    specs: Mapping[str, Head],
    data: bytes | None,
    hidden: int,
    causal: bool,
    numbers: Iterable[int],
) -> dict[str, LoadedHead]:
    """Load the heads of a vFM into host memory, by name; the name of a single one is empty. `hidden`: width of the hidden states.

    Raises `PackageRejected`: missing, unknown or ill-shaped tensors, values not finite, pooling that sees nothing.
    """
    for name, spec in specs.items():
        if causal and getattr(spec, "pooling", None) == "cls":
            raise PackageRejected(
                "pooling 'cls' reads the first token, which sees nothing of the text in a causal backbone; use 'last'",
                field=f"heads.{name}.pooling" if name else "head.pooling",
            )
        if data is None and outputs(spec):
            raise PackageRejected(f"a {spec.kind} head needs head.safetensors", field="head")
    tensors: dict[str, Tensor] = {}
    if data is not None:
        check_head(specs, data, hidden)
        for key, tensor in read_tensors(data, "head.safetensors", "head").items():
            tensors[key] = fitted(tensor, f"head.safetensors: {key}", torch.float32, "head")
    return {
        name: LoadedHead(number, spec, tuple(_layers(spec, f"{name}." if name else "", tensors, hidden)))
        for (name, spec), number in zip(specs.items(), numbers, strict=False)
    }


def _layers(spec: Head, stem: str, tensors: Mapping[str, Tensor], hidden: int) -> Iterable[Layer]:
    """Yield the layers in the order in which they run; a bias that the file lacks is zero."""
    for key, shape in head_tensors(spec, hidden).items():
        if key.endswith("weight"):
            bias = tensors.get(stem + key.removesuffix("weight") + "bias")
            yield Layer(tensors[stem + key], torch.zeros(shape[0]) if bias is None else bias)
