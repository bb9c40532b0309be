"""A small decoder from nothing."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from fmplex_broker.errors import Conflict
from fmplex_broker.examples.texts import PlainText, Record, read
from fmplex_broker.specs.fitting import FitDone
from fmplex_broker.specs.fitting_text import DecoderSpec, TextEvent, TextStarted, TextStep
from fmplex_worker.tuning.decoder import loop
from fmplex_worker.tuning.decoder.examples import TextExample, encode
from fmplex_worker.tuning.decoder.tokenizer import train_tokenizer
from fmplex_worker.tuning.settings import settings

DECAY = 0.1
SAMPLES = 6  # answers reported on the way


def train_decoder(spec: DecoderSpec, on_event: Callable[[TextEvent], None]) -> FitDone:
    """Train, and write the folder `out`, which appears when it is complete.

    Raises `InvalidInput` (`data`), `Conflict` (`out` is there already) or `NonFiniteOutput` (training diverged).
    """
    began = time.perf_counter()
    if spec.out.exists():
        raise Conflict(f"{spec.out} is there already; give another folder", field="out")
    records = read(spec.data)
    with settings(spec.seed, spec.threads):
        tokenizer = train_tokenizer(_words(records), spec.vocabulary, spec.positions)
        train, held = loop.split(encode(records, tokenizer, spec.positions), spec.held_out)
        model = _model(spec, tokenizer)
        size = sum(p.numel() for p in model.parameters())
        on_event(TextStarted(name=spec.name, texts=len(records), tokens=_tokens(train), parameters=size, trained=size))
        loop.train(model, train, spec, DECAY, _reporter(spec, model, tokenizer, on_event))
        accuracy = loop.score(model, held, spec.batch_tokens)
    artifact = _save(spec.out, model, tokenizer)
    done = FitDone(
        name=spec.name, out=spec.out, artifact=artifact, metric="accuracy", score=accuracy, baseline=_most_frequent(held),
        epochs=max(1, round(spec.steps * spec.batch_tokens / _tokens(train))), seconds=time.perf_counter() - began,
    )  # fmt: skip
    on_event(done)
    return done


def _words(records: Sequence[Record]) -> list[str]:
    return [
        text
        for record in records
        for text in (
            [record.text] if isinstance(record, PlainText) else [message.content for message in record.messages]
        )
    ]


def _model(spec: DecoderSpec, tokenizer: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=spec.width,
        intermediate_size=spec.inner,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=spec.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _reporter(spec: DecoderSpec, model: Any, tokenizer: Any, on_event: Callable[[TextEvent], None]) -> loop.Report:
    due = [round(spec.steps * i / SAMPLES) for i in range(1, SAMPLES + 1)] if spec.ask else []

    def report(step: int, loss: float, tokens: int) -> None:
        sample = ""
        while due and due[0] <= step:
            due.pop(0)
            sample = loop.answer(model, tokenizer, spec.ask)
        on_event(TextStep(name=spec.name, step=step, steps=spec.steps, loss=loss, tokens=tokens, sample=sample))

    return report


def _save(out: Path, model: LlamaForCausalLM, tokenizer: Any) -> str:
    """Write the folder. Returns what its weights are called: a digest of them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        digest = hashlib.sha256((scratch / "model.safetensors").read_bytes()).hexdigest()[:16]
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return digest


def _tokens(examples: Sequence[TextExample]) -> int:
    return sum(len(example.tokens) for example in examples)


def _most_frequent(examples: Sequence[TextExample]) -> float:
    """Compute what always saying the most frequent token would score."""
    counts = Counter(token for example in examples for token in example.tokens[example.learn :])
    return counts.most_common(1)[0][1] / counts.total()
