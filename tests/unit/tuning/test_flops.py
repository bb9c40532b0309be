"""What units compute, in floating-point operations: as much as one backward, and once more what they compute again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fmplex_worker.packed import linear
from fmplex_worker.tuning.units import MicroBatch, check_units
from fmplex_worker.tuning.walk import Walk
from tests.support import tiny, training

LLAMA = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}


def flops(work: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_units_compute_what_one_backward_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "linear_for", lambda weight: functional.linear)  # nobody counts oneDNN's
    walk = Walk(training.load(tiny.save_model("llama", tmp_path, **LLAMA)))
    learnt, texts = training.lora(walk.backbone, r=8), training.texts(9, 23)
    loss = training.loss_of(32, walk.backbone.hidden)

    def units(keep: int) -> None:
        training.run(MicroBatch(walk, learnt, texts, loss, keep=keep, key=None).units())

    forward = flops(lambda: training.run(check_units(walk, learnt, texts, lambda _: None)))
    monolithic = flops(lambda: training.monolithic(walk.backbone, learnt, texts, loss, None))
    assert monolithic / forward == pytest.approx(2.03, abs=0.01)
    assert flops(lambda: units(walk.layers)) / monolithic == pytest.approx(1.0, abs=1e-3)
    assert flops(lambda: units(1)) / monolithic == pytest.approx(1.452, abs=0.005)  # the last layer's are still there
