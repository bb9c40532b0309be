"""Memory of a device: what a pass takes, and an engine whose parts do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec, ResidencySpec, TuningSpec, WorkerSpec
from fmplex_worker.backbones import loading
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.texts import Text
from fmplex_worker.engine import device_memory, opening
from fmplex_worker.packed.row import TokenSpan, pack
from tests.support import tiny, tiny_lm
from tests.support.peak import Peak

UNITS = 1920
ENCODERS, DECODERS = ("bert", "deberta-v2", "t5", "modernbert"), ("llama", "gpt2", "gemma2")


def backbone(family: str, folder: Path) -> Backbone:
    save = tiny_lm.save_model if family in DECODERS else tiny.save_model
    return loading.load_backbone(BackboneSpec(name="t", model=str(save(family, folder)), pass_units=UNITS), "cpu")


def taken(backbone: Backbone, length: int) -> int:
    """Bytes that a full pass of texts of a length takes."""
    texts = [Text.of_ids(np.arange(length) % 30 + 3) for _ in range(UNITS // length)]
    row = pack([TokenSpan(length, None) for _ in texts], backbone.device, None)
    with torch.inference_mode(), Peak() as peak:
        backbone.encode(row, texts)
    return peak.most


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_a_pass_takes_no_more_than_predicted_nor_far_less(family: str, tmp_path: Path) -> None:
    backbone_ = backbone(family, tmp_path)
    layers = device_memory.pass_bytes(backbone_, UNITS)
    if backbone_.lm_head is not None:
        assert layers >= 3 * 4 * UNITS * backbone_.lm_head.vocabulary, "or its logits do"
    most = max(taken(backbone_, length) for length in (16, 60))
    assert most <= layers <= max(3 * most, 3 * 4 * UNITS * tiny_vocabulary(backbone_))


def tiny_vocabulary(backbone: Backbone) -> int:
    return 0 if backbone.lm_head is None else backbone.lm_head.vocabulary


def opened(folder: Path, **worker: object) -> None:
    opening.open_engine(BackboneSpec(name="t", model=str(folder)), WorkerSpec(device="cpu", **worker))  # type: ignore[arg-type]


def test_an_engine_tells_who_has_how_much_of_its_device(tmp_path: Path) -> None:
    worker = WorkerSpec(device="cpu", memory_bytes=1 << 30, tuning=TuningSpec(enabled=True, bytes=1 << 28))
    engine = opening.open_engine(BackboneSpec(name="t", model=str(tiny_lm.save_model("llama", tmp_path))), worker)
    ledger = engine.info.ledger
    assert (ledger.device, ledger.tuning) == (1 << 30, 1 << 28)
    assert ledger.backbone == engine.info.memory_bytes
    assert engine.capacity.memory == ledger.kv
    assert 0 <= ledger.device - sum(ledger[1:]) < 2, "the others share the rest"
    assert abs(ledger.residency - ledger.kv) < 20 << 20


def test_an_engine_whose_parts_do_not_fit_is_not_opened(tmp_path: Path) -> None:
    tiny.save_model("bert", tmp_path)
    with pytest.raises(InvalidInput, match=r"lower worker\.residency\.device_bytes to [\d,]+ or less"):
        opened(tmp_path, memory_bytes=1 << 28, residency=ResidencySpec(device_bytes=1 << 28))
    with pytest.raises(InvalidInput, match=r"raise worker\.memory_bytes"):
        opened(tmp_path, memory_bytes=1000)
    opened(tmp_path, memory_bytes=1 << 28, residency=ResidencySpec(device_bytes=1 << 27))


def test_a_container_has_what_it_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    v2, v1 = tmp_path / "memory.max", tmp_path / "limit"
    monkeypatch.setattr(device_memory, "_LIMITS", (v2, v1))
    machine, cpu = psutil.virtual_memory().total, torch.device("cpu")
    assert device_memory.device_memory(cpu) == machine
    v2.write_text("max\n")
    v1.write_text(f"{1 << 62}\n")
    assert device_memory.device_memory(cpu) == machine
    v2.write_text(f"{1 << 20}\n")
    assert device_memory.device_memory(cpu) == 1 << 20


def test_a_backbone_that_its_device_does_not_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: torch.nn.Module, *_: object) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    tiny.save_model("bert", tmp_path)
    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(InvalidInput, match=r"backbone takes [\d,]+ bytes") as refusal:
        opened(tmp_path)
    assert refusal.value.field == "backbone.model"
