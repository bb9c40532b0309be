"""Trainings of tiny backbones: the same micro-batch in units and in one backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmplex_broker.specs.fitting import Ia3Spec, LoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.packed.row import TokenSpan, pack, packed_order
from fmplex_worker.training import Unit
from fmplex_worker.tuning.fresh import fresh_ia3, fresh_lora
from fmplex_worker.tuning.learnt import DropoutKey, Learnt
from fmplex_worker.tuning.pace import Kind, Pace
from fmplex_worker.tuning.walk import blocks_of
from tests.support import tiny

Loss = Callable[[Tensor], Tensor]


class Steady(Pace):
    """So many layers a unit, however long they take."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self._layers = layers

    def layers(self, kind: Kind, cost: float) -> int:
        return self._layers


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Backbone:
    backbone = load_backbone(BackboneSpec(name=tiny.NAME, model=str(folder)), "cpu")
    backbone.model.to(dtype)
    if backbone.lm_head is not None:
        backbone.lm_head.head.to(dtype)
    return backbone


def texts(*lengths: int, seed: int = 0) -> list[Text]:
    return [Text.of_ids(np.array(ids)) for ids in tiny.ids(*lengths, seed=seed)]


def lora(backbone: Backbone, seed: int = 0, **spec: object) -> Learnt:
    """A LoRA that has learnt something: no factor is zero."""
    return noisy(fresh_lora(backbone, LoraSpec.model_validate({"r": 4, **spec}), seed), seed)


def noisy(learnt: Learnt, seed: int = 0) -> Learnt:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learnt.parameters.values():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return learnt


def ia3(backbone: Backbone, seed: int = 0) -> Learnt:
    """An (IA)³ that has learnt something: of the last linear of the blocks it scales the input, of the others the output."""
    last = [path for path in backbone.targets if f"{path}.".startswith(f"{blocks_of(backbone.model)[0]}.")][-1]
    return noisy(fresh_ia3(backbone, Ia3Spec(feedforward=(last.rpartition(".")[2],))), seed)


def save(learnt: Learnt, folder: Path) -> Path:
    """Save an adapter as a package has it; returns its PEFT folder."""
    folder.mkdir()
    for name, data in learnt.files().items():
        (folder / Path(name).name).write_bytes(data)
    return folder


def loss_of(tokens: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Loss:
    """A loss in which every token counts, and its place."""
    weights = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return lambda hidden: (hidden * weights).sum() / tokens


def monolithic(backbone: Backbone, learnt: Learnt, some: Sequence[Text], loss: Loss, key: DropoutKey | None) -> float:
    """One forward and one backward through the model as it serves, whose gradients are added; returns the loss."""
    adapter = learnt.adapter(key)
    spans = [TokenSpan(text.tokens, adapter) for text in some]
    order = packed_order(spans)
    row = pack([spans[at] for at in order], backbone.device, None)
    hidden = backbone.encode(row, [some[at] for at in order])
    parts = {at: hidden[start : start + n] for at, start, n in zip(order, row.starts, row.lengths, strict=True)}
    value = loss(torch.cat([parts[at] for at in range(len(some))]))
    value.backward()
    return float(value.detach())


def run(units: Iterable[Unit]) -> list[Unit]:
    """Run units in order; returns them."""
    ran = []
    for unit in units:
        unit.run()
        ran.append(unit)
    return ran


def gradients(learnt: Learnt) -> dict[str, Tensor | None]:
    """Take the gradients away."""
    found = {name: parameter.grad for name, parameter in learnt.parameters.items()}
    for parameter in learnt.parameters.values():
        parameter.grad = None
    return found


def assert_same(ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None]) -> None:
    """Check that gradients are the same to the bit, and that there are any."""
    assert ours.keys() == theirs.keys()
    assert any(gradient is not None and gradient.any() for gradient in theirs.values())
    for name, gradient in theirs.items():
        got = ours[name]
        assert (got is None) == (gradient is None), name
        assert got is None or gradient is None or torch.equal(got, gradient), name
