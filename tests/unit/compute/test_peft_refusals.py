"""Adapters that cannot be served in common passes: refused when they are packed, by name, with what to do instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft import SERVED, check_adapter
from fmplex_broker.packages.peft_ia3 import Ia3Config
from fmplex_broker.packages.peft_prompt import PromptConfig
from fmplex_worker.adapters.loading import load_adapter
from fmplex_worker.engine.engine import PackedEngine
from tests.support import tiny

QUERY, DENSE = "encoder.layer.0.attention.self.query", "encoder.layer.0.output.dense"
IA3 = {"peft_type": "IA3", "feedforward_modules": ["output.dense"]}


def ia3(module: str, *shape: int) -> dict[str, torch.Tensor]:
    return {f"base_model.model.{module}.ia3_l": torch.full(shape, 1.5)}


def parts(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "adapter_config.json").read_bytes(), (folder / "adapter_model.safetensors").read_bytes()


def refused_at_pack(folder: Path) -> str:
    with pytest.raises(PackageRejected) as caught:
        check_adapter(*parts(folder))
    assert caught.value.field == "adapter"
    return caught.value.message


def refused_by(engine: PackedEngine, folder: Path) -> str:
    """By the worker, which knows the backbone; packing it was fine."""
    check_adapter(*parts(folder))
    with pytest.raises(PackageRejected) as caught:
        load_adapter(*parts(folder), engine._backbone, 1)
    assert caught.value.field == "adapter"
    return caught.value.message


@pytest.mark.parametrize("kind", [*sorted({kind.value for kind in peft.PeftType} - SERVED.keys()), "NEXT_YEARS"])
def test_kind_is_refused(tmp_path: Path, kind: str) -> None:
    message = refused_at_pack(tiny.save_adapter(tmp_path, {"anything": torch.ones(1)}, peft_type=kind))
    assert message.startswith(f"adapter_config.json: peft_type {kind!r} is not served: ")
    assert re.search("train|make a vFM", message)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**IA3, "modules_to_save": ["classifier"]}, "modules_to_save: .* head.safetensors"),
        ({**IA3, "feedforward_modules": "(?=a)b"}, "too complex"),
        ({**IA3, "feedforward_modules": "["}, "not a regular expression"),
        ({**IA3, "feedforward_modules": None}, "feedforward_modules: "),
        ({**IA3, "idea": 1}, "idea: this option is not known here"),
        ({"peft_type": "PROMPT_TUNING"}, "num_virtual_tokens: "),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 0}, "num_virtual_tokens: "),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "num_transformer_submodules": 2}, "encoder-decoder"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 3, "modules_to_save": ["score"]}, "head.safetensors"),
    ],
)
def test_option_is_refused(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    assert re.search(says, refused_at_pack(tiny.save_adapter(tmp_path, {"anything": torch.ones(1)}, **config)))


@pytest.mark.parametrize("kind", [Ia3Config, PromptConfig])
def test_options_that_change_nothing_are_taken(tmp_path: Path, kind: Any) -> None:
    harmless: dict[str, Any] = dict.fromkeys(kind.harmless, "anything")
    if kind is Ia3Config:
        check_adapter(*parts(tiny.save_adapter(tmp_path, ia3(QUERY, 32, 1), **IA3, **harmless)))
    else:
        check_adapter(*parts(tiny.save_prompt(tmp_path, 3, **harmless)))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"base_model.model.classifier.weight": torch.ones(2, 2)}, "whole weight"),
        ({"base_model.model.q.ia3_l.default": torch.ones(2, 1)}, "not an (IA)³ vector"),
        (tiny.lora(QUERY), "whole weight is not served"),
    ],
)
def test_tensors_of_ia3(tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    assert says in refused_at_pack(tiny.save_adapter(tmp_path, {**ia3(QUERY, 32, 1), **tensors}, **IA3))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "no prompt_embeddings; needed: (3, hidden size)"),
        ({"prompt_embeddings": torch.ones(4, 32)}, "prompt_embeddings (4, 32); needed: (3, hidden size)"),
        ({"prompt_embeddings": torch.ones(96)}, "prompt_embeddings (96,)"),
        (
            {"prompt_embeddings": torch.ones(3, 32), "base_model.model.score.weight": torch.ones(2)},
            "'base_model.model.score",
        ),
    ],
)
def test_tensors_of_a_prompt(tmp_path: Path, tensors: dict[str, torch.Tensor], says: str) -> None:
    config = {"peft_type": "P_TUNING", "num_virtual_tokens": 3}
    assert says in refused_at_pack(tiny.save_adapter(tmp_path, tensors, **config))


def test_adapters_of_several_names(tmp_path: Path) -> None:
    """A state dict with adapters' names in it, not what `save_pretrained` writes."""
    tensors = {name.replace(".weight", ".default.weight"): t for name, t in tiny.lora(QUERY).items()}
    assert "save it with PEFT's save_pretrained" in refused_at_pack(tiny.save_adapter(tmp_path, tensors))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (ia3(QUERY, 768, 1), "for the output of this backbone's layer it must be (32, 1)"),
        (ia3(QUERY, 1, 32), "for the output"),
        (ia3(DENSE, 32, 1), "for the input (feedforward_modules) of this backbone's layer it must be (1, 48)"),
        (ia3("encoder.layer.9.output.dense", 1, 48), "another backbone: it changes encoder.layer.9"),
        (ia3("bert.pooler.dense", 32, 1), "changes the pooler"),
        ({"base_model.model.bert.pooler.dense.ia3_l": torch.ones(32, 1)}, "changes no layer"),
        ({f"base_model.model.{QUERY}.ia3_l": torch.full((32, 1), torch.inf)}, "ia3_l holds NaN or infinite"),
    ],
)
def test_ia3_for_another_backbone(
    bert: PackedEngine, tmp_path: Path, tensors: dict[str, torch.Tensor], says: str
) -> None:
    assert says in refused_by(bert, tiny.save_adapter(tmp_path, tensors, **IA3))


def test_prompt_for_another_backbone(bert: PackedEngine, tmp_path: Path) -> None:
    assert "width 768, here it is 32" in refused_by(bert, tiny.save_prompt(tmp_path / "wide", 3, 768))
    assert "leave no room" in refused_by(bert, tiny.save_prompt(tmp_path / "long", tiny.POSITIONS - 7))
    load_adapter(*parts(tiny.save_prompt(tmp_path / "most", tiny.POSITIONS - 8)), bert._backbone, 1)


def tokens(module: str, rows: int = len(tiny.VOCABULARY)) -> dict[str, torch.Tensor]:
    stem = f"base_model.model.{module}.lora_embedding_"
    return {f"{stem}A": torch.ones(4, rows), f"{stem}B": torch.ones(tiny.HIDDEN, 4)}


def test_other_embeddings(bert: PackedEngine, tmp_path: Path) -> None:
    positions = tiny.save_adapter(tmp_path / "positions", tokens("bert.embeddings.position_embeddings", tiny.POSITIONS))
    assert "of embeddings only embeddings.word_embeddings is served" in refused_by(bert, positions)
    other = tiny.save_adapter(tmp_path / "other", tokens("bert.embeddings.word_embeddings", 30_522))
    assert f"fits a layer of 30522 → 32, here it is {len(tiny.VOCABULARY)} → 32" in refused_by(bert, other)


def test_trained_embeddings(
    engine_of: Callable[[str], PackedEngine], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """PEFT stores the embeddings beside a LoRA on `embed_tokens`; they must not have changed."""
    llama = engine_of("llama")
    table = load_file(model_folder("llama") / "model.safetensors")["embed_tokens.weight"]
    base = "base_model.model.model.embed_tokens.base_layer.weight"
    same = tiny.save_adapter(tmp_path / "same", {**tokens("model.embed_tokens"), base: table})
    assert load_adapter(*parts(same), llama._backbone, 1).tokens is not None
    changed = tiny.save_adapter(tmp_path / "changed", {**tokens("model.embed_tokens"), base: table * 2})
    assert "is not the backbone's embedding" in refused_by(llama, changed)
    assert "whole weight" in refused_at_pack(tiny.save_adapter(tmp_path / "alone", {**tiny.lora(QUERY), base: table}))
