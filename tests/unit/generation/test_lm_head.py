"""Adapters on the language-model head against PEFT, tied to the embeddings or not, beside others and none in the same passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from fmplex_broker.errors import PackageRejected
from fmplex_broker.packages.peft import check_adapter
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.workloads.generation import workload
from tests.support import families as support
from tests.support import tiny, tiny_lm

Folders = Callable[[str], Path]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
families = support.families(tiny_lm.FAMILIES)


def configs(family: str) -> dict[str, peft.PeftConfig]:
    """Adapters that change the head: alone, with layers before it, with the embeddings, tied to theirs, and scaled."""
    table, layer = ("wte", "c_attn") if family == "gpt2" else ("embed_tokens", "q_proj")
    common: dict[str, Any] = {"init_lora_weights": False, "fan_in_fan_out": False}
    return {
        "head": peft.LoraConfig(r=3, lora_alpha=6, target_modules=["lm_head"], **common),
        "layers": peft.LoraConfig(
            r=4, lora_alpha=8, target_modules=["lm_head", layer], rank_pattern={"lm_head": 7}, use_rslora=True,
            **common | {"fan_in_fan_out": family == "gpt2"},
        ),
        "both": peft.LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", table], **common),
        "tied": peft.LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head"], ensure_weight_tying=True, **common),
        "outputs": peft.IA3Config(target_modules=["lm_head"], feedforward_modules=[], init_ia3_weights=False),
        "inputs": peft.IA3Config(target_modules=["lm_head"], feedforward_modules=["lm_head"], init_ia3_weights=False),
    }  # fmt: skip


def save_adapter(source: Path, folder: Path, config: peft.PeftConfig, seed: int) -> Path:
    """Save it as PEFT does, with values that matter."""
    tiny_lm.save_adapter(source, folder, config, seed)
    tensors = load_file(folder / "adapter_model.safetensors")
    scaled = {key: 1 + (value - 1) * 0.3 if "ia3_l" in key else value for key, value in tensors.items()}
    save_file(scaled, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
def reference_logits(folder: Path, adapter: Path | None, prompt: list[int], text: list[int]) -> list[torch.Tensor]:
    """The logits from which each token of a text was drawn."""
    out = tiny_lm.reference(folder, adapter)(input_ids=torch.tensor([prompt + text])).logits[0]
    return list(out[len(prompt) - 1 : -1])


class _Seen:
    """Logits that a workload has drawn from, in the order of the samplers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: dict[int, list[torch.Tensor]] = {}
        draw = workload.draw

        def seeing(logits: torch.Tensor, samplers: Any) -> Any:
            for row, sampler in zip(logits, samplers, strict=True):
                self.logits.setdefault(id(sampler), []).append(row.clone())
            return draw(logits, samplers)

        monkeypatch.setattr(workload, "draw", seeing)

    def of(self, job: Any) -> list[torch.Tensor]:
        return self.logits[id(job.sequence.sampler)]


@families
def test_peft_gives_the_same_logits(
    family: str, lm_folder: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts and of every token after them, while texts of all of these and of none share passes."""
    folder, seen = lm_folder(family), _Seen(monkeypatch)
    engine = tiny_lm.open_tiny(folder)
    adapters: list[Path | None] = [
        save_adapter(folder, tmp_path / name, config, seed)
        for seed, (name, config) in enumerate(configs(family).items())
        if family == "llama" or name != "tied"  # of GPT-2, PEFT reads no tied adapter again; the others tie nothing
    ]
    adapters += [tiny_lm.save_lora(folder, tmp_path / "others", 9, 4), None]
    digests = [tiny_lm.load(engine, adapter) for adapter in adapters]
    prompts = tiny_lm.prompts(*range(3, 3 + 2 * len(adapters)))
    jobs = [
        tiny_lm.prepare(engine, digests[i % len(digests)], prompt, temperature=0, max_tokens=6, ignore_eos=True)
        for i, prompt in enumerate(prompts)
    ]
    tiny_lm.drive(engine, jobs, seed=1, evictions=0.05)
    for i, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)):
        adapter = adapters[i % len(adapters)]
        text = job.sequence.tokens[len(prompt) :]
        wanted = reference_logits(folder, adapter, prompt, text)
        plain = reference_logits(folder, None, prompt, text)
        assert len(seen.of(job)) >= len(text)
        for ours, theirs in zip(seen.of(job)[-len(text) :], wanted, strict=True):
            assert tiny.relative(ours, theirs) < 1e-5, adapter
        if adapter is not None:
            assert tiny.relative(wanted[0], plain[0]) > 1e-2, "it matters"


def test_its_memory_is_counted(lm_folder: Folders, tmp_path: Path) -> None:
    engine = tiny_lm.open_tiny(lm_folder("llama"))
    digest = tiny_lm.load(engine, save_adapter(lm_folder("llama"), tmp_path, configs("llama")["head"], 0))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tiny.tensors_of(engine, digest)}
    assert engine.loaded[digest] == sum(held.values()) > 0


def test_other_heads_read_what_peft_gives_them(lm_folder: Folders, tmp_path: Path) -> None:
    """An embedding reads hidden states, which the head comes after."""
    folder = lm_folder("llama")
    engine = tiny_lm.open_tiny(folder)
    adapter = save_adapter(folder, tmp_path, configs("llama")["both"], 3)
    digest = tiny.load(engine, tiny.FEATURES, adapter=adapter)
    (prompt,) = tiny_lm.prompts(9)
    (ours,) = tiny.features(engine, (digest, prompt))
    with torch.no_grad():
        out = tiny_lm.reference(folder, adapter)(input_ids=torch.tensor([prompt]), output_hidden_states=True)
    assert tiny.relative(ours, out.hidden_states[-1][0]) < 1e-5


def refused(engine: PackedEngine, adapter: Path) -> str:
    with pytest.raises(PackageRejected) as refusal:
        tiny.load(engine, tiny.FEATURES, adapter=adapter)
    assert refusal.value.field == "adapter"
    return str(refusal.value)


def test_what_is_not_served_is_refused_for_what_it_is(
    lm_folder: Folders, tmp_path: Path, bert_engine: PackedEngine
) -> None:
    folder = lm_folder("mistral")
    engine = tiny_lm.open_tiny(folder)
    adapter = save_adapter(folder, tmp_path / "lora", configs("mistral")["head"], 0)
    tensors = load_file(adapter / "adapter_model.safetensors")
    base = "base_model.model.lm_head.base_layer.weight"
    changed = tiny.save_adapter(tmp_path / "changed", tensors | {base: tensors[base] * 2}, r=3, lora_alpha=6)
    assert "not the backbone's language-model head; train without" in refused(engine, changed)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    whole = tiny.lora("model.layers.0.self_attn.q_proj") | {f"{stem}.base_layer.weight": torch.ones(32, 32)}
    assert "q_proj.base_layer.weight is a whole weight" in refused(engine, tiny.save_adapter(tmp_path / "q", whole))
    narrow = tiny.save_adapter(tmp_path / "narrow", tiny.lora("lm_head", outputs=300))
    assert "fits a layer of 32 → 300, here it is 32 → 320" in refused(engine, narrow)
    assert "has no such linear layer" in refused(bert_engine, adapter)
    with pytest.raises(
        PackageRejected, match=r"modules_to_save: whole modules .* train a LoRA on embeddings and lm_head"
    ):
        check_adapter(b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]}', b"")
    saved = tiny.save_adapter(tmp_path / "saved", {"base_model.model.lm_head.weight": tensors[base]})
    assert "a whole weight is not served; put a head into head.safetensors" in refused(engine, saved)
