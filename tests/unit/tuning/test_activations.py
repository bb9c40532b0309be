"""What a micro-batch keeps is known before it runs, and how much of it may be computed again is decided by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmplex_broker.errors import TooLarge
from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.tuning.activations import Activations
from fmplex_worker.tuning.learnt import Learnt
from fmplex_worker.tuning.units import MicroBatch
from fmplex_worker.tuning.walk import Walk
from tests.support import families, tiny, training


def kept(walk: Walk, learnt: Learnt, lengths: tuple[int, ...], keep: int) -> int:
    """Bytes alive between forward and backward: of all that is kept for the backward, and what goes into layers."""
    held = {tensor.data_ptr() for tensor in (*walk.backbone.model.parameters(), *walk.backbone.model.buffers())}
    sizes: dict[int, tuple[torch.Tensor, int]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in held:
            sizes[memory.data_ptr()] = tensor, memory.nbytes()
        return tensor

    batch = MicroBatch(walk, learnt, training.texts(*lengths), torch.sum, keep=keep, key=None)
    for i, unit in enumerate(batch.units(training.Steady(1))):
        if i == walk.layers:
            break
        if i < walk.layers - keep:
            unit.run()  # what it keeps is gone at once
        else:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                unit.run()
    return sum(size for _, size in sizes.values())


@families.families(FAMILIES)
def test_bytes_are_predicted(family: str, tmp_path: Path) -> None:
    """From short texts for longer ones: never much too little, and not twice as much."""
    walk = Walk(training.load(tiny.save_model(family, tmp_path)))
    learnt = training.lora(walk.backbone)
    activations = Activations(walk, learnt)
    for lengths in ((60,), (9, 30, 9)):
        predicted = activations.saved(sum(lengths), max(lengths), walk.layers)
        assert 0.94 <= predicted / kept(walk, learnt, lengths, walk.layers) <= 1.5
    sizes = [activations.saved(50, 20, keep) for keep in range(walk.layers)]
    assert sizes == sorted(sizes)
    assert all(parameter.grad is None for parameter in learnt.parameters.values())


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return Walk(training.load(tiny.save_model("bert", tmp_path, num_hidden_layers=6)))


def test_a_budget_decides_how_many_layers_compute_again(walk: Walk) -> None:
    activations = Activations(walk, training.lora(walk.backbone))
    for keep in (0, 1, 3, 6):
        budget = activations.saved(50, 20, keep)
        assert activations.layers_kept(50, 20, budget) == keep
        if keep:
            assert activations.layers_kept(50, 20, budget - 1) < keep
    with pytest.raises(TooLarge, match="shorten or cut the texts") as caught:
        activations.layers_kept(50, 20, activations.saved(50, 20, 0) - 1)
    assert caught.value.field == "worker.tuning.bytes"
    assert f"{activations.saved(50, 20, 0):,}" in caught.value.message


def test_what_is_computed_again_is_not_kept(walk: Walk) -> None:
    learnt = training.lora(walk.backbone)
    sizes = [kept(walk, learnt, (20, 9, 21), keep) for keep in (0, 3, 6)]
    assert sizes[0] == 0
    assert 0 < sizes[1] < 0.6 * sizes[2]
