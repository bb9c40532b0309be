"""Greedy text equals transformers' `generate`, whoever shares the pass and however the scheduler cuts the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.engine.engine import PackedEngine
from tests.support import families as support
from tests.support import tiny_lm

Folders = Callable[[str], Path]
families = support.families(tiny_lm.FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
_LENGTHS = (1, 2, 7, 40, 40, 90, 23, 64)


def _check(engine: PackedEngine, folder: Path, adapters: list[Path | None], seed: int, evictions: float = 0.0) -> None:
    digests = [tiny_lm.load(engine, adapter) for adapter in adapters]
    prompts = tiny_lm.prompts(*_LENGTHS, seed=seed)
    jobs = [
        tiny_lm.prepare(engine, digests[i % len(digests)], prompt, temperature=0, max_tokens=5 + 3 * i)
        for i, prompt in enumerate(prompts)
    ]
    outs = tiny_lm.drive(engine, jobs, seed=seed, evictions=evictions)
    for i, (job, prompt, out) in enumerate(zip(jobs, prompts, outs, strict=True)):
        text = job.sequence.tokens[len(prompt) :]
        assert out["completion_tokens"] == len(text)
        tiny_lm.assert_greedy(tiny_lm.reference(folder, adapters[i % len(adapters)]), prompt, text)


@families
def test_alone_and_together(family: str, lm_folder: Folders) -> None:
    folder = lm_folder(family)
    _check(tiny_lm.open_tiny(folder), folder, [None], seed=1)


@families
def test_adapters_of_different_ranks_and_none_share_passes(family: str, lm_folder: Folders, tmp_path: Path) -> None:
    folder = lm_folder(family)
    adapters = [tiny_lm.save_lora(folder, tmp_path / str(rank), rank, rank) for rank in (2, 8, 5)]
    _check(tiny_lm.open_tiny(folder), folder, [*adapters, None], seed=2)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
def test_other_kinds_of_adapters(lm_folder: Folders, tmp_path: Path) -> None:
    folder = lm_folder("llama")
    configs = {
        "ia3": peft.IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        ),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
    }  # fmt: skip
    adapters = [tiny_lm.save_adapter(folder, tmp_path / name, config) for name, config in configs.items()]
    for evictions in (0.0, 0.1):
        _check(tiny_lm.open_tiny(folder, pass_units=32), folder, [*adapters, None], seed=6, evictions=evictions)


@pytest.mark.parametrize("pass_units", [16, 64, 4096])
def test_any_chunk(pass_units: int, lm_folder: Folders) -> None:
    folder = lm_folder("mistral")
    _check(tiny_lm.open_tiny(folder, pass_units=pass_units), folder, [None], seed=3)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")
def test_prompts_go_in_smaller_parts_where_the_device_has_no_memory_for_larger_ones(
    lm_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Backbone.encode

    def small(self: Any, row: Any, texts: Any) -> Any:
        if row.tokens > 40:
            raise torch.OutOfMemoryError
        return encode(self, row, texts)

    monkeypatch.setattr(Backbone, "encode", small)
    folder = lm_folder("llama")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    prompt = tiny_lm.save_adapter(folder, tmp_path / "prompt", config)
    _check(tiny_lm.open_tiny(folder, pass_units=4096), folder, [prompt, None], seed=7)


@families
def test_evicted_rows_go_on_where_they_were(family: str, lm_folder: Folders) -> None:
    folder = lm_folder(family)
    _check(tiny_lm.open_tiny(folder), folder, [None], seed=4, evictions=0.1)


def test_prompts_that_begin_alike(lm_folder: Folders) -> None:
    folder = lm_folder("llama")
    engine = tiny_lm.open_tiny(folder)
    digest, other = tiny_lm.load(engine), tiny_lm.load(engine)
    (start, *ends) = tiny_lm.prompts(80, 5, 9, 30)
    model = tiny_lm.reference(folder)
    for at, end in enumerate(ends):
        job = tiny_lm.prepare(engine, digest, start + end, temperature=0, max_tokens=8)
        out = tiny_lm.drive(engine, [job])[0]
        assert out["cached_tokens"] == (64 if at else 0)  # whole blocks of 32
        tiny_lm.assert_greedy(model, start + end, job.sequence.tokens[len(start + end) :])
    job = tiny_lm.prepare(engine, other, start, temperature=0, max_tokens=8)
    assert tiny_lm.drive(engine, [job])[0]["cached_tokens"] == 0, "never across versions"
    request = Request({"input_ids": start}, {"temperature": 0, "max_tokens": 8}, vfm="another")
    (stranger,) = engine.prepare([(digest, request)])
    assert tiny_lm.drive(engine, [stranger])[0]["cached_tokens"] == 0, "nor across vFMs with the same package"


def test_memory_is_all_given_back(lm_folder: Folders) -> None:
    engine = tiny_lm.open_tiny(lm_folder("llama"), kv_bytes=1 << 20)
    digest = tiny_lm.load(engine)
    for seed in range(5):
        jobs = [
            tiny_lm.prepare(engine, digest, p, temperature=0, max_tokens=20)
            for p in tiny_lm.prompts(40, 80, 3, seed=seed)
        ]
        tiny_lm.drive(engine, jobs, seed)
    assert engine.capacity.used == 0
    assert 0 < engine.capacity.cached <= 1 << 20
    engine.unload(digest)
    assert engine.capacity.cached == 0
