"""Tiny backbones of every family with random weights, a tokenizer, and packages made of tensors."""

from __future__ import annotations

import dataclasses
import itertools
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from fmplex_broker.packages.package import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEAD, Package
from fmplex_broker.specs.heads import Features, Head, head_tensors
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_broker.wire.messages import Request
from fmplex_broker.wire.tensors import Tensor
from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.protocol import Work

HIDDEN, POSITIONS, NAME = 32, 66, "tiny"
WORDS = ("cat", "dog", "sat", "mat", "paris", "anna", "the", "on", "in", "house")
_SPECIAL = ("[PAD]", "[PAD1]", "[UNK]", "[CLS]", "[SEP]")  # 1 is RoBERTa's padding, so no word may have it
VOCABULARY = [*_SPECIAL, *WORDS, *string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), *".,!-"]
FIRST_WORD = len(_SPECIAL)

_COMMON = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,  # attention far from uniform, so that a leak shows
    "bos_token_id": 3,
    "eos_token_id": 4,
}
_SLIDING = {"sliding_window": 8, "num_key_value_heads": 2}
MULTIPLIED = {
    "num_key_value_heads": 2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}  # fmt: skip
CAPPED = {
    "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 12, "pad_token_id": 0,
    "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 3.0,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "camembert": {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": {"pad_token_id": 0, "embedding_size": 16},
    "distilbert": {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "pad_token_id": 0},
    "modernbert": {"pad_token_id": 0, "local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 3},
    "mpnet": {"pad_token_id": 1},
    "gpt2": {},
    "llama": {"num_key_value_heads": 2},
    "qwen2": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1, "head_dim": 8},
    "mistral": _SLIDING,
    "albert": {"pad_token_id": 0, "embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "nomic_bert": {"pad_token_id": 0},
    "deberta-v2": {
        "pad_token_id": 0, "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    },
    "t5": {
        "pad_token_id": 0, "d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "n_positions": POSITIONS,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "feed_forward_proj": "gated-gelu",
        "hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None, "max_position_embeddings": None,
    },
    "phi3": {"pad_token_id": 0, **_SLIDING},
    "olmo2": {"pad_token_id": 0, "num_key_value_heads": 2},
    "granite": MULTIPLIED,
    "smollm3": {**_SLIDING, "pad_token_id": 0, "no_rope_layers": [1, 0], "use_sliding_window": True},
    "gemma2": {**_SLIDING, **CAPPED, "attn_logit_softcapping": 2.0},
    "gemma3_text": {**_SLIDING, **CAPPED},
}  # fmt: skip


def save_model(family: str, folder: Path, **changes: Any) -> Path:
    """Save a model as `save_pretrained` does: config, safetensors, fast tokenizer."""
    torch.manual_seed(sum(map(ord, family)))
    said = {**_COMMON, **CONFIGS[family], **changes}
    config = AutoConfig.for_model(family, **{key: value for key, value in said.items() if value is not None})
    model = FAMILIES[family].auto.from_config(config)
    with torch.no_grad():  # norms and biases start as ones and zeros, which would hide mistakes
        for weight in model.parameters():
            if weight.ndim == 1:
                weight += torch.randn_like(weight) * 0.1
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    ).save_pretrained(folder)


_numbers = itertools.count()


def package(
    head: Head | None = None, *, adapter: Path | None = None, weights: Path | None = None, **spec: Any
) -> Package:
    """Make a package as `read_package` would, unchecked, with a digest of its own. `spec`: `heads`, `input`."""
    number = next(_numbers)
    files = {HEAD: weights} if weights is not None else {}
    if adapter is not None:
        files |= {
            ADAPTER_CONFIG: adapter / "adapter_config.json",
            ADAPTER_WEIGHTS: adapter / "adapter_model.safetensors",
        }
    read = {name: path.read_bytes() for name, path in files.items()}
    return Package(VfmSpec(name=f"v{number}", backbone=NAME, head=head, **spec), f"digest{number}", read)


def head_file(path: Path, outputs: int, *, hidden: int = HIDDEN, seed: int = 0, bias: bool = True) -> Path:
    g = torch.Generator().manual_seed(seed)
    tensors = {"weight": torch.randn(outputs, hidden, generator=g)}
    if bias:
        tensors["bias"] = torch.randn(outputs, generator=g)
    save_file(tensors, path)
    return path


def stack_file(path: Path, heads: Mapping[str, Head], seed: int = 0) -> Path:
    """Save random tensors of any heads (one with an empty name, or several)."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        f"{name}.{key}" if name else key: torch.randn(*shape, generator=g) * 0.5
        for name, head in heads.items()
        for key, shape in head_tensors(head, HIDDEN).items()
    }
    save_file(tensors, path)
    return path


def load(engine: PackedEngine, head: Head | None = None, **parts: Any) -> str:
    """Load a version; returns its digest."""
    made = package(head, **parts)
    engine.load(engine.fit(made))
    return made.digest


def tensors_of(engine: PackedEngine, digest: str) -> list[torch.Tensor]:
    """Every tensor that a loaded version holds, found without asking it."""
    seen: dict[int, object] = {}
    found = []
    todo: list[object] = [engine._versions.get(digest)]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, str | int | BaseModel):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, torch.Tensor):
            found.append(thing)
        elif dataclasses.is_dataclass(thing):
            todo += [getattr(thing, field.name) for field in dataclasses.fields(thing)]
        elif isinstance(thing, Mapping):
            todo += thing.values()
        elif isinstance(thing, tuple | list):
            todo += thing
    return found


def ids(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Draw texts as token ids."""
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST_WORD, len(VOCABULARY), n).tolist() for n in lengths]


def embeds(tokens: int, width: int, seed: int = 0) -> Tensor:
    return Tensor.of(np.random.default_rng(seed).normal(size=(tokens, width)).astype(np.float32))


def step(engine: PackedEngine, jobs: list[Any]) -> list[Any]:
    """One pass of prepared jobs."""
    return list(engine.step([Work(job, job.units) for job in jobs]).results)


def run(engine: PackedEngine, *jobs: tuple[str, Any] | tuple[str, Any, dict[str, Any]]) -> list[Any]:
    """Prepare and run all jobs in one pass; every one must be accepted."""
    prepared = engine.prepare([(digest, Request(value, *(rest or [{}]))) for digest, value, *rest in jobs])
    for job in prepared:
        if isinstance(job, Exception):
            raise job
    return step(engine, prepared)


def features(engine: PackedEngine, *jobs: tuple[str, list[int]]) -> list[torch.Tensor]:
    """Hidden states `[tokens, hidden]` of each job, all in one pass."""
    results = run(engine, *((digest, {"input_ids": value}) for digest, value in jobs))
    return [torch.from_numpy(result["features"].numpy().copy()) for result in results]


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def reference(folder: Path) -> Any:
    """Load the model as transformers runs it."""
    family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    return family.auto.from_pretrained(folder, attn_implementation="eager", **family.options).eval()


@torch.no_grad()
def reference_features(model: Any, text: list[int]) -> torch.Tensor:
    states: torch.Tensor = model(input_ids=torch.tensor([text])).last_hidden_state[0]
    return states


_LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def save_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """Save a PEFT folder from parts, to be as wrong as a test needs it; a LoRA if `config` does not say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = config if "peft_type" in config else _LORA | config
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def save_prompt(folder: Path, virtual: int, width: int = HIDDEN, **config: Any) -> Path:
    """Save a soft prompt of `virtual` random tokens."""
    tensors = {"prompt_embeddings": torch.randn(virtual, width, generator=torch.Generator().manual_seed(virtual))}
    return save_adapter(folder, tensors, **{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": virtual, **config})


def lora(module: str, rank: int = 4, inputs: int = HIDDEN, outputs: int = HIDDEN) -> dict[str, torch.Tensor]:
    """Draw the two tensors of one module, as PEFT names them."""
    g = torch.Generator().manual_seed(rank)
    stem = f"base_model.model.{module}"
    return {
        f"{stem}.lora_A.weight": torch.randn(rank, inputs, generator=g) * 0.3,
        f"{stem}.lora_B.weight": torch.randn(outputs, rank, generator=g) * 0.3,
    }


FEATURES = Features()
