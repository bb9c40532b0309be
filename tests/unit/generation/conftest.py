"""Models are saved once a family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny, tiny_lm

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family → folder of its tiny language model."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_lm.save_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture
def bert_engine(tmp_path: Path) -> PackedEngine:
    """A backbone that only encodes."""
    return open_engine(
        BackboneSpec(name=tiny.NAME, model=str(tiny.save_model("bert", tmp_path))), WorkerSpec(device="cpu")
    )
