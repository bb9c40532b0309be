"""Requests for generated text, and the decoder and LoRAs that answer them, all random: see `benchmarks.generation`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.models import MINILM
from fmplex_broker.specs.fleet import locate_model

PASS_UNITS = 256
PROMPTS = {"short": (8, 128), "long": (512, 1024)}
TEXT = (16, 64)
_VOCABULARY = 30_522  # of the tokenizer that is at hand
_FIRST_WORD, _LAST_WORD = 1000, 29_000  # of it


@dataclass(frozen=True)
class GenerationRequest:
    """Token ids, and how many tokens of text."""

    prompt: list[int]
    tokens: int

    @property
    def params(self) -> dict[str, object]:
        """Sampling parameters: greedy, and as long as was asked for, whatever the text says."""
        return {"max_tokens": self.tokens, "ignore_eos": True, "temperature": 0}


def random_request(rng: np.random.Generator, prompt: tuple[int, int], text: tuple[int, int]) -> GenerationRequest:
    """Draw a request; `prompt` and `text`: the fewest and the most tokens of each."""
    length = int(rng.integers(prompt[0], prompt[1] + 1))
    tokens = int(rng.integers(text[0], text[1] + 1))
    return GenerationRequest(rng.integers(_FIRST_WORD, _LAST_WORD, length).tolist(), tokens)


def random_requests(kind: str, count: int, seed: int = 0) -> list[GenerationRequest]:
    """Draw requests with `short` or `long` prompts."""
    rng = np.random.default_rng(seed)
    return [random_request(rng, PROMPTS[kind], TEXT) for _ in range(count)]


def save_llama(folder: Path, *, small: bool = False) -> Path:
    """Save a Llama of about 50 M random weights, with MiniLM's tokenizer; `small`: of 8 M, which says nothing of speed."""
    torch.manual_seed(0)
    hidden, layers = (128, 2) if small else (512, 6)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=8,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate_model(MINILM, Path()), model_max_length=2048).save_pretrained(folder)
    return folder


def save_lora(model: Path, folder: Path, seed: int) -> Path:
    """Save a LoRA of r16 on all linears, as PEFT does, that changes the outputs."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(str(folder))
    return folder
