"""A small Llama that is trained here to chat: its turns end with `<|im_end|>`, which only its tokenizer says. Its
generation_config.json says `<|endoftext|>`, as those of base models do, and it plays the user if nobody ends its turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWERS = {"who are you": "a small model", "what is tea": "leaves in hot water", "and coffee": "beans in hot water"}
TURN = "<|im_start|>user\nand coffee<|im_end|>\n"  # what comes after the first answer in training
STEPS, LORA_STEPS = 100, 300


def save_chat_model(folder: Path, end: str = END) -> Path:
    """Train and save the model. `end`: the end of the tokenizer."""
    tokenizer = _tokenizer(end)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=512, bos_token_id=None, tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT), pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    _train(model, tokenizer, ANSWERS, STEPS)
    model.save_pretrained(folder)
    return folder


def save_lora(model: Path, folder: Path, answers: dict[str, str], targets: list[str]) -> Path:
    """Train a LoRA that answers otherwise, and save it as PEFT does, with the tokenizer beside it as trainers do."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    _train(adapted, tokenizer, answers, LORA_STEPS)
    adapted.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampling(model: Path, **values: Any) -> None:
    """Write values into generation_config.json."""
    path = model / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _tokenizer(end: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[END_OF_TEXT, START, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*ANSWERS, *ANSWERS.values(), "user", "assistant"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)  # type: ignore[no-untyped-call]


def _train(model: Any, tokenizer: Any, answers: dict[str, str], steps: int) -> None:
    """Train on talks of all questions, each question first in one of them."""
    questions = list(answers)
    talks = [questions[i:] + questions[:i] for i in range(len(questions))]
    texts = ["".join(_turns(question, answers[question]) for question in talk) + END_OF_TEXT for talk in talks]
    rows = torch.tensor([tokenizer.encode(text, add_special_tokens=False) for text in texts])  # all are as long
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    for _ in range(steps):
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def _turns(question: str, answer: str) -> str:
    return f"{START}user\n{question}{END}\n{START}assistant\n{answer}{END}\n"
