"""A whole training gives what PEFT and torch's own optimizer give, written down as in a textbook."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

from fmplex_broker.packages.package import ADAPTER_WEIGHTS
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.training import TuneOrder
from fmplex_worker.tuning.head import Head
from fmplex_worker.tuning.head_course import HeadCourse
from fmplex_worker.tuning.head_objective import HeadObjective
from fmplex_worker.tuning.run import Run
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor

EPOCHS, BATCH, RATE = 8, 8, 1e-3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_training_gives_what_peft_and_adamw_give(spec_for: SpecFor, model: Path, tmp_path: Path) -> None:
    lines = learnable.labelled()[:40]
    spec = spec_for("classification", lines, lora={"r": 2}, epochs=EPOCHS, batch_size=BATCH, patience=EPOCHS)
    backbone = load_backbone(BackboneSpec(name="tiny", model=str(model)), "cpu")
    course = HeadCourse(TuneOrder(spec), spec, backbone)
    run = Run(course, "", None)
    objective = course._objective
    assert objective is not None
    while objective.head is None:  # it is fitted to what the backbone alone gives
        unit = run.next()
        assert unit is not None
        unit.run()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert course.learnt is not None
    start = course.learnt.files()
    for name, content in start.items():
        (adapter / Path(name).name).write_bytes(content)
    peft: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(model), adapter, is_trainable=True).eval()
    theirs, their_head = trained(spec, objective, peft, copy.deepcopy(objective.head))
    while (unit := run.next()) is not None:
        unit.run()
    assert run.progress.step == EPOCHS * len(objective.batches(0))
    ours, before = (load(package[ADAPTER_WEIGHTS]) for package in (course.learnt.files(), start))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor - theirs[name]).norm() <= 0.01 * (theirs[name] - before[name]).norm(), name
    head = objective.head if run.progress.best_step == run.progress.step else None
    assert head is None or torch.allclose(head.linear.weight, their_head.linear.weight, rtol=0.01, atol=1e-4)


def trained(spec: FitSpec, objective: HeadObjective, peft: Any, head: Head) -> tuple[dict[str, Tensor], Head]:
    """Train by PEFT, text by text; returns the adapter by the names of its file, and the head."""
    learn = objective._learn
    targets = torch.cat([item.target for item in learn])
    counts = torch.bincount(targets).float()
    weight = (counts.mean() / counts).sqrt()
    adapter = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    groups = [
        {"params": [*adapter.values()], "lr": RATE, "weight_decay": 0.0},
        {"params": [*head.parameters()], "lr": 3 * RATE, "weight_decay": 0.1},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps = EPOCHS * len(objective.batches(0))
    warm = round(0.1 * steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: (n + 1) / warm if n < warm else 1 - 0.9 * (n - warm) / (steps - warm)
    )
    for epoch in range(EPOCHS):
        for batch in objective.batches(epoch):
            texts = [text.ids for i in batch for text in learn[i].sequences]
            states = [peft(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].mean(0) for ids in texts]
            loss = functional.cross_entropy(head(torch.stack(states)), targets[batch], weight=weight)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)  # type: ignore[attr-defined]
            optimizer.step()
            schedule.step()
    return {name.replace(".default", ""): p.detach() for name, p in adapter.items()}, head
