"""Training in units gives what one backward gives, to the bit, and what PEFT gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.tuning.learnt import DropoutKey
from fmplex_worker.tuning.units import MicroBatch
from fmplex_worker.tuning.walk import Walk
from tests.support import families, tiny, training

LENGTHS = (5, 9, 20, 9)
Walks = Callable[[str, torch.dtype], Walk]


@pytest.fixture(scope="session")
def walk_of(tmp_path_factory: pytest.TempPathFactory) -> Walks:
    """Family and dtype → a walk of its tiny model."""
    made: dict[tuple[str, torch.dtype], Walk] = {}
    folders: dict[str, Path] = {}

    def walk(family: str, dtype: torch.dtype) -> Walk:
        if family not in folders:
            folders[family] = tiny.save_model(family, tmp_path_factory.mktemp(family))
        if (family, dtype) not in made:
            made[family, dtype] = Walk(training.load(folders[family], dtype))
        return made[family, dtype]

    return walk


@families.families(FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_of_units_are_those_of_one_backward(family: str, dtype: torch.dtype, walk_of: Walks) -> None:
    """Whatever is kept and whatever is computed again, with dropout and without."""
    walk = walk_of(family, dtype)
    backbone, texts = walk.backbone, training.texts(*LENGTHS)
    learnt = training.lora(backbone, dropout=0.2)
    loss = training.loss_of(sum(LENGTHS), backbone.hidden, dtype=dtype)
    for key in (None, DropoutKey(seed=1, step=2)):
        value = training.monolithic(backbone, learnt, texts, loss, key)
        want = training.gradients(learnt)
        for keep in range(walk.layers + 1):
            batch = MicroBatch(walk, learnt, texts, loss, keep=keep, key=key)
            training.run(batch.units(layers=1))
            assert batch.value == value
            training.assert_same(training.gradients(learnt), want)
