"""What is learnt of an adapter: LoRA factors (Hu et al. 2021) or (IA)³ vectors (Liu et al. 2022), as PEFT names and saves them.

They are applied as those of a vFM that is served: the packed row's own segments, with tensors that can be differentiated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from fmplex_broker.errors import InvalidInput
from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from fmplex_broker.packages.peft import read_config, read_options
from fmplex_broker.packages.peft_ia3 import IA3_TENSOR, Ia3Config
from fmplex_broker.packages.peft_lora import LORA_TENSOR, LoraConfig
from fmplex_worker.adapters.files import read_tensors
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.adapters.targets import is_pooler, target_of
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.packed.segments import Adapter, Factors, Scale


def stable_seed(*parts: object) -> int:
    """Return a seed that differs for different parts, and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


class DropoutKey(NamedTuple):
    """The choice of what dropout leaves out: the same for the same seed, step, and part of the step's batch."""

    seed: int
    step: int
    part: int = 0


class _Lora(NamedTuple):
    """The update of linear `slot`: names of its parameters `a` `[r, in]` and `b` `[out, r]`."""

    slot: int
    a: str
    b: str
    scaling: float


class _Vector(NamedTuple):
    """The scale of linear `slot`, of what goes `into` it or comes out of it: the name of its parameter."""

    slot: int
    name: str
    into: bool


class Learnt:
    """The parameters of one training, by their names in PEFT's file. `options`: those of `adapter_config.json`; `dropout`: the
    share of what a LoRA reads that is left out.

    They are float32 on the device, whatever the backbone computes in, but float64 where it does.
    """

    def __init__(
        self, backbone: Backbone, options: Mapping[str, Any], tensors: Mapping[str, Tensor], dropout: float = 0.0
    ) -> None:
        self._backbone, self._options, self._dropout = backbone, options, dropout
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        self._kept = {name: tensor for name, tensor in tensors.items() if _fixed(name, backbone)}
        self.parameters = {
            name: nn.Parameter(tensor.to(backbone.device, dtype, copy=True))
            for name, tensor in sorted(tensors.items())
            if name not in self._kept
        }
        config = read_config(options)
        if isinstance(config, LoraConfig):
            self._loras, self._vectors = _loras(self.parameters, config, backbone), []
        else:
            assert isinstance(config, Ia3Config)
            self._loras, self._vectors = [], _vectors(self.parameters, config, backbone)

    @property
    def scales(self) -> bool:
        """Whether it is (IA)³."""
        return not self._loras

    def adapter(self, key: DropoutKey | None) -> Adapter:
        """Return what is learnt as passes apply it, so that gradients flow to the parameters; `key`: with dropout."""
        return self._made(key, range(self._backbone.slots))

    def logits(self, hidden: Tensor, key: DropoutKey | None) -> Tensor:
        """Compute the logits of rows: hidden `[rows, width]` → `[rows, vocabulary]` float32, with what is learnt of the
        language-model head."""
        slot = len(self._backbone.targets)
        trained = slot in {*(lora.slot for lora in self._loras), *(vector.slot for vector in self._vectors)}
        adapter = self._made(key, (slot,)) if trained else None
        return self._backbone.logits(hidden, [adapter] * len(hidden))

    def files(self, base: str | None = None, values: Mapping[str, Tensor] | None = None) -> dict[str, bytes]:
        """Return the adapter's files as PEFT has them, always the same bytes for the same parameters. `base`: the model they are
        for, as PEFT is to find it; `values`: of the parameters, instead of what they have now."""
        options = {**self._options} if base is None else {**self._options, "base_model_name_or_path": base}
        of = self.parameters if values is None else values
        tensors = {name: of[name].detach().cpu().contiguous() for name in self.parameters}
        return {
            ADAPTER_CONFIG: json.dumps(options, indent=2, sort_keys=True).encode(),
            ADAPTER_WEIGHTS: safetensors.torch.save({**self._kept, **tensors}, {"format": "pt"}),
        }

    def _made(self, key: DropoutKey | None, slots: Sequence[int]) -> Adapter:
        updates: list[Factors | Scale | None] = [None] * self._backbone.slots
        inputs: dict[int, Tensor] = {}
        dtype, of = self._backbone.dtype, self.parameters
        for lora in self._loras:
            if lora.slot in slots:
                up = (of[lora.b] * lora.scaling).to(dtype)
                updates[lora.slot] = Factors(of[lora.a].to(dtype).t(), up.t())
        for vector in self._vectors:
            if vector.slot in slots:
                by = of[vector.name].to(dtype).flatten()
                if vector.into:
                    inputs[vector.slot] = by
                else:
                    updates[vector.slot] = Scale(by)
        return Adapter(1, tuple(updates), inputs, dropout=self._dropping(key))

    def _dropping(self, key: DropoutKey | None) -> Callable[[int, Tensor], Tensor] | None:
        share = self._dropout
        if key is None or not share:
            return None

        def drop(slot: int, x: Tensor) -> Tensor:
            generator = torch.Generator(x.device).manual_seed(stable_seed(*key, slot))
            kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
            return x * kept / (1 - share)

        return drop


def continued(backbone: Backbone, config: bytes, weights: bytes, dropout: float = 0.0) -> Learnt:
    """Go on from an adapter that was saved. Raises `InvalidInput`: of a kind that cannot be trained here; `PackageRejected`: it
    could not be served either."""
    adapter = load_adapter(config, weights, backbone, 1)
    if adapter.embeds:
        what = "a soft prompt" if adapter.prompt is not None else "an update of the token embeddings"
        raise InvalidInput(
            f"{what} cannot be trained here, only LoRA and (IA)³ on linear layers; begin with a new adapter",
            field="adapter",
        )
    return Learnt(backbone, read_options(config), read_tensors(weights, ADAPTER_WEIGHTS, "adapter"), dropout)


def _fixed(name: str, backbone: Backbone) -> bool:
    """Tell whether a tensor of the file is not learnt: a pooler's, which is not run, or a weight of the backbone."""
    match = LORA_TENSOR.fullmatch(name) or IA3_TENSOR.fullmatch(name)
    return match is None or is_pooler(match["module"], backbone)


def _loras(names: Mapping[str, Tensor], config: LoraConfig, backbone: Backbone) -> list[_Lora]:
    loras = []
    for name in names:
        match = LORA_TENSOR.fullmatch(name)
        if match is not None and match["side"] == "A":
            module, other = match["module"], name.replace(".lora_A.", ".lora_B.")
            loras.append(_Lora(target_of(module, name, backbone).slot, name, other, config.scaling(module)))
    return loras


def _vectors(names: Mapping[str, Tensor], config: Ia3Config, backbone: Backbone) -> list[_Vector]:
    found = [(name, match["module"]) for name in names if (match := IA3_TENSOR.fullmatch(name))]
    return [_Vector(target_of(m, name, backbone).slot, name, config.feedforward(m)) for name, m in found]
