"""A training that has ended leaves nothing in the memory of the worker that goes on."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.opening import open_run
from tests.support import tiny_lm
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor

MEMORY = 1 << 30  # with a limit it is measured how much a micro-batch takes


@pytest.fixture
def _without_gc() -> Iterator[None]:
    """What the collector has to look for stays until it does, which on a worker is seldom."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _tensors() -> int:
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


def _check(order: TuneOrder, backbone: Backbone) -> None:
    """Train twice: the first time what lasts is made, of torch and of the backbone."""
    before = 0
    for _ in range(2):
        before = _tensors()
        run = open_run(order, backbone, None)
        while (unit := run.next()) is not None:
            unit.run()
        run.snapshot().package()
        course = weakref.ref(run._course)
        del run, unit
        assert course() is None
    assert _tensors() == before


@pytest.mark.usefixtures("_without_gc")
@pytest.mark.parametrize("head", ["classification", "embedding", "tagging"])
def test_of_a_head_nothing_stays(spec_for: SpecFor, model: Path, head: str) -> None:
    backbone = load_backbone(BackboneSpec(name="tiny", model=str(model)), "cpu")
    lines = learnable.MAKERS[head]()[:40]
    _check(TuneOrder(spec_for(head, lines, epochs=1, lora={"r": 2}), memory=MEMORY), backbone)


@pytest.mark.usefixtures("_without_gc")
def test_of_generated_text_nothing_stays(tmp_path: Path) -> None:
    folder = tiny_lm.save_model("llama", tmp_path / "llama")
    backbone = load_backbone(BackboneSpec(name="tiny", model=str(folder)), "cpu")
    data = learnable.write(tmp_path / "data.jsonl", [{"text": f"the cat sat {n}"} for n in range(12)])
    spec = TextLoraSpec.model_validate(
        {"name": "chat", "data": data, "backbone": "tiny", "model": str(folder), "out": tmp_path / "out",
         "steps": 3, "batch_tokens": 64, "learning_rate": 1e-2, "held_out": 0.25, "lora": {"r": 2}}
    )  # fmt: skip
    _check(TuneOrder(spec, memory=MEMORY), backbone)
