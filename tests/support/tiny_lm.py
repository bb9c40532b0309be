"""Tiny language models of every generating family, with random weights and a byte-level tokenizer; and a driver in place of the
worker's loop."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.specs.heads import Generation
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.protocol import Progress, Work
from fmplex_worker.workloads.generation.workload import GenerationWorkload
from tests.support import tiny

POSITIONS = 200
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_SLIDING = {"sliding_window": 24, "num_key_value_heads": 2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1, "head_dim": 8},
    "mistral": _SLIDING,
    "gpt2": {},
    "phi3": _SLIDING,
    "olmo2": {"num_key_value_heads": 2},
    "granite": tiny.MULTIPLIED,
    "smollm3": {**_SLIDING, "no_rope_layers": [1, 0], "use_sliding_window": True},
    "gemma2": {**tiny.CAPPED, "sliding_window": 24, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**tiny.CAPPED, "sliding_window": 24},
}
FAMILIES = (*_CONFIGS,)
_CORPUS = [
    "the cat sat on the mat",
    "a dog in the house",
    "anna has seen paris",
    "tea or coffee, they asked",
    "überall Käse 🧀",
]


def save_tokenizer(folder: Path) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")  # type: ignore[no-untyped-call]
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def save_model(family: str, folder: Path) -> Path:
    torch.manual_seed(sum(map(ord, family)))
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": save_tokenizer(folder),
            "hidden_size": tiny.HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": POSITIONS,
            "initializer_range": 0.3,
            "bos_token_id": None,
            "eos_token_id": 0,
            **_CONFIGS[family],
            "pad_token_id": 1,
        },
    )
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += torch.randn_like(weight) * 0.1
    model.save_pretrained(folder)
    return folder


def save_lora(model_folder: Path, folder: Path, seed: int, rank: int) -> Path:
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False,
        fan_in_fan_out="gpt2" in model_folder.name,
    )  # fmt: skip
    return save_adapter(model_folder, folder, config, seed)


def save_adapter(model_folder: Path, folder: Path, config: peft.PeftConfig, seed: int = 0) -> Path:
    """Save an adapter with random weights, as PEFT does."""
    torch.manual_seed(seed)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(folder)
    return folder


def open_tiny(folder: Path, kv_bytes: int = 1 << 24, pass_units: int = 64) -> PackedEngine:
    spec = BackboneSpec(name=tiny.NAME, model=str(folder), pass_units=pass_units)
    return open_engine(spec, WorkerSpec(device="cpu", kv_bytes=kv_bytes))


def generation(engine: PackedEngine) -> GenerationWorkload:
    workload = engine._workloads["generate"]
    assert isinstance(workload, GenerationWorkload)
    return workload


def load(engine: PackedEngine, adapter: Path | None = None, **head: Any) -> str:
    made = tiny.package(Generation(**head), adapter=adapter)
    engine.load(engine.fit(made))
    return made.digest


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, n).tolist() for n in lengths]


def prepare(engine: PackedEngine, digest: str, value: Any, **params: Any) -> Any:
    """One job; raises if it is refused."""
    made = engine.prepare([(digest, Request({"input_ids": value} if isinstance(value, list) else value, params))])[0]
    if isinstance(made, Exception):
        raise made
    return made


def drive(
    engine: PackedEngine, jobs: Sequence[Any], seed: int = 0, evictions: float = 0.0, shares: float = 0.7
) -> list[Any]:
    """Run all jobs to their ends in passes that a scheduler might make: some of the jobs, each with some of its pieces; between
    passes rows may lose their memory. Results in the order of `jobs`."""
    rng = random.Random(seed)
    results: dict[int, Any] = {}
    for _ in range(10_000):
        left = [i for i in range(len(jobs)) if i not in results]
        if not left:
            return [results[i] for i in range(len(jobs))]
        for i in left:
            if rng.random() < evictions:
                engine.drop(jobs[i])
        some = [i for i in left if rng.random() < shares] or left[:1]
        rng.shuffle(some)
        work = []
        for i in some:
            pieces = jobs[i].pieces()
            work.append(Work(jobs[i], sum(piece.tokens for piece in pieces[: rng.randint(1, len(pieces))])))
        for i, result in zip(some, engine.step(work).results, strict=True):
            if not isinstance(result, Progress):
                results[i] = result
    raise AssertionError("some job never ends")


def reference(folder: Path, adapter: Path | None = None) -> Any:
    """Load the model as transformers and PEFT run it."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model if adapter is None else peft.PeftModel.from_pretrained(model, adapter).eval()


def assert_greedy(model: Any, prompt: list[int], text: list[int]) -> None:
    """Check that `text` is what `generate` gives for the prompt, up to near-ties: where they part, two
    tokens are as good as equal."""
    inputs = torch.tensor([prompt])
    out = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=len(text), do_sample=False, pad_token_id=1,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    theirs = out.sequences[0, len(prompt) :].tolist()
    for i, (ours, wanted) in enumerate(zip(text, theirs, strict=False)):
        if ours != wanted:
            logits = out.logits[i][0]
            assert abs(float(logits[ours] - logits[wanted])) < 1e-4, (i, text, theirs)
            return
    assert len(text) == len(theirs)
