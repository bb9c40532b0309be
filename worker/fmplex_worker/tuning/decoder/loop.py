"""The steps of a decoder's training, its score, and answers of the model while it learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmplex_broker.errors import NonFiniteOutput
from fmplex_broker.specs.fitting_text import DecoderSpec
from fmplex_worker.tuning.decoder.examples import IGNORED, Batch, TextExample, batches, in_order, question

# step, mean loss since the last report, tokens learnt so far
Report = Callable[[int, float, int], None]

WARM_UP = 0.05  # of all steps
LAST_RATE = 0.05  # of the learning rate, in the last step
BETAS = (0.9, 0.95)
CLIP = 1.0
REPORTS = 50  # about as many reports a training
ANSWER = 40  # tokens of an answer while it learns


def split(examples: Sequence[TextExample], share: float) -> tuple[Sequence[TextExample], Sequence[TextExample]]:
    """Split examples into those to train on and those held out, which are the last ones."""
    cut = len(examples) - max(1, round(len(examples) * share))
    return examples[: max(1, cut)], examples[max(1, cut) :] or examples[-1:]


def train(model: Any, examples: Sequence[TextExample], spec: DecoderSpec, decay: float, report: Report) -> None:
    """Train a model in place. Raises `NonFiniteOutput` when it diverges."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, schedule = _optimizer(trained, spec, decay)
    generator = torch.Generator().manual_seed(spec.seed % 2**63)
    every = max(1, spec.steps // REPORTS)
    losses, tokens, half = 0.0, 0, _half_is_faster()
    model.train()
    for step, batch in zip(range(1, spec.steps + 1), batches(examples, spec.batch_tokens, generator), strict=False):
        loss = _loss(model, batch, half)
        if not torch.isfinite(loss):
            raise NonFiniteOutput(f"training diverged in step {step}; lower learning_rate", field="learning_rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        schedule.step()
        losses += float(loss.detach())
        tokens += int((batch.targets != IGNORED).sum())
        if step % every == 0:
            report(step, losses / every, tokens)
            losses = 0.0
    model.eval()


def _loss(model: Any, batch: Batch, half: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(input_ids=batch.inputs, use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)


def _half_is_faster() -> bool:
    """Measure whether this processor multiplies faster in bfloat16 than in float32: four times where it has instructions for
    it, and many times slower where it has not."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 256, dtype=dtype), torch.ones(256, 512, dtype=dtype)
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            torch.mm(a, b)
            times.append(time.perf_counter() - begun)
        seconds.append(min(times))
    return seconds[1] < seconds[0]


def _optimizer(
    trained: Sequence[Tensor], spec: DecoderSpec, decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make an AdamW whose rate rises linearly during `WARM_UP` of all steps and then falls linearly to `LAST_RATE`."""
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.learning_rate, betas=BETAS, fused=True)
    warm = max(1, round(WARM_UP * spec.steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 1 - (1 - LAST_RATE) * (step - warm) / max(1, spec.steps - warm)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@torch.inference_mode()
def score(model: Any, examples: Sequence[TextExample], budget: int) -> float:
    """Compute the share of the tokens to find that the model finds most likely."""
    right = total = 0
    for batch in in_order(examples, budget):
        found = model(input_ids=batch.inputs, use_cache=False).logits.argmax(-1)
        known = batch.targets != IGNORED
        right += int(((found == batch.targets) & known).sum())
        total += int(known.sum())
    return right / max(1, total)


@torch.inference_mode()
def answer(model: Any, tokenizer: Any, text: str) -> str:
    """Let the model answer a question, greedily."""
    tokens = question(tokenizer, text)
    start = len(tokens)
    model.eval()
    for _ in range(ANSWER):
        token = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        tokens.append(token)
    model.train()
    return str(tokenizer.decode(tokens[start:], skip_special_tokens=True))
