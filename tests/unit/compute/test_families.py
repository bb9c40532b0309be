"""The contract that every family must pass before it is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoConfig

from fmplex_broker.errors import InvalidInput, NonFiniteOutput
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.families import FAMILIES, family_of
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.packed import attention
from tests.support import families as support
from tests.support import tiny

Engines = Callable[[str], PackedEngine]
Folders = Callable[[str], Path]
# PEFT reads a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
families = support.families(FAMILIES)

# How an adapter may differ from another: rank, targets, scaling, patterns.
LORAS: list[dict[str, Any]] = [
    {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    {"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
    {
        "r": 8,
        "lora_alpha": 8,
        "target_modules": r".*(\.1\..*|layers\.1\..*)((q|query|qkv|v|value)(_proj)?|[qv]_lin|Wqkv|c_attn)",
    },
    {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "rank_pattern": {r".*1.*": 8},
        "alpha_pattern": {r".*\.0\..*": 2},
        "layers_to_transform": None,
    },
]


def test_every_row_has_a_tiny_model() -> None:
    assert set(tiny.CONFIGS) == set(FAMILIES)


@families
def test_packed_equals_alone(family: str, engine_of: Engines, model_folder: Folders, monkeypatch: Any) -> None:
    """Texts of many lengths, two of them equal, longer than any window; one query block is not enough for the longest."""
    monkeypatch.setattr(attention, "_BLOCK", 16)
    engine, model = engine_of(family), tiny.reference(model_folder(family))
    bare = tiny.load(engine, tiny.FEATURES)
    texts = tiny.ids(7, 1, 40, 7, 23, 60)
    packed = tiny.features(engine, *((bare, text) for text in texts))
    for text, ours in zip(texts, packed, strict=True):
        assert tiny.relative(ours, tiny.reference_features(model, text)) < 1e-5
        assert tiny.relative(ours, tiny.features(engine, (bare, text))[0]) < 1e-5


@families
def test_adapters_equal_peft(family: str, engine_of: Engines, model_folder: Folders, tmp_path: Path) -> None:
    """All kinds of adapters and none in one pass, each against PEFT alone."""
    engine, model = engine_of(family), tiny.reference(model_folder(family))
    wrapped, folders = _peft(model, tmp_path)
    digests = [tiny.load(engine, tiny.FEATURES, adapter=folder) for folder in folders]
    bare = tiny.load(engine, tiny.FEATURES)
    texts = tiny.ids(*[5, 12] * len(digests), 9)
    owners = [*range(len(digests))] * 2
    packed = tiny.features(engine, *((digests[o], t) for o, t in zip(owners, texts, strict=False)), (bare, texts[-1]))
    for owner, text, ours in zip(owners, texts, packed, strict=False):
        wrapped.set_adapter(f"a{owner}")
        theirs = tiny.reference_features(wrapped, text)
        assert tiny.relative(ours, theirs) < 1e-4
        with wrapped.disable_adapter():
            assert tiny.relative(ours, tiny.reference_features(wrapped, text)) > 1e-2
    with wrapped.disable_adapter():
        assert tiny.relative(packed[-1], tiny.reference_features(wrapped, texts[-1])) < 1e-5


@families
def test_wrong_adapter_is_noticed(family: str, engine_of: Engines, model_folder: Folders, tmp_path: Path) -> None:
    engine = engine_of(family)
    _, folders = _peft(tiny.reference(model_folder(family)), tmp_path)
    a, b = (tiny.load(engine, tiny.FEATURES, adapter=folder) for folder in folders[:2])
    first, second = tiny.ids(9, 9)
    right = tiny.features(engine, (a, first), (b, second))
    swapped = tiny.features(engine, (b, first), (a, second))
    for ours, theirs in zip(right, swapped, strict=True):
        assert tiny.relative(theirs, ours) > 1e-2


@families
def test_neighbours_nan_does_not_leak(family: str, engine_of: Engines, model_folder: Folders, tmp_path: Path) -> None:
    """A NaN that gets past validation: same lengths, same adapter, so that it shares every call with its neighbours."""
    engine = engine_of(family)
    _, folders = _peft(tiny.reference(model_folder(family)), tmp_path)
    digest = tiny.load(engine, tiny.FEATURES, adapter=folders[0])
    width = engine._backbone.embeddings.embedding_dim
    inputs = [{"inputs_embeds": tiny.embeds(11, width, seed)} for seed in range(3)]
    jobs: list[Any] = engine.prepare([(digest, Request(value, {})) for value in inputs])
    clean = tiny.step(engine, jobs)
    text = jobs[1].texts[0]
    broken = dataclasses.replace(jobs[1], texts=(dataclasses.replace(text, embeds=text.embeds * float("nan")),))
    results = tiny.step(engine, [jobs[0], broken, jobs[2]])
    assert isinstance(results[1], NonFiniteOutput)
    for i in (0, 2):
        assert results[i]["features"].data == clean[i]["features"].data


def _peft(model: Any, folder: Path) -> tuple[Any, list[Path]]:
    """PEFT's model with all `LORAS` as a0, a1, ..., their B not zero; and the folders it saves them to."""
    transposed = model.config.model_type == "gpt2"  # its linears are Conv1D
    configs = [peft.LoraConfig(**options, fan_in_fan_out=transposed) for options in LORAS]
    wrapped = peft.get_peft_model(model, configs[0], adapter_name="a0")
    for i, config in enumerate(configs[1:], 1):
        wrapped.add_adapter(f"a{i}", config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    wrapped.save_pretrained(str(folder))
    return wrapped.eval(), [folder / f"a{i}" for i in range(len(configs))]


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("gpt_neox", {}, "is not served; use one of albert, bert"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_refused(model_type: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        family_of(AutoConfig.for_model(model_type, **changes))
    assert caught.value.field == "backbone.model"
