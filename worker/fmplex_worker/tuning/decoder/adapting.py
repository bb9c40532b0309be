"""A LoRA for a decoder, by PEFT, as the package of a generating vFM."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.texts import read
from fmplex_broker.packages.writing import refuse_foreign
from fmplex_broker.specs.fitting import FitDone
from fmplex_broker.specs.fitting_text import TextEvent, TextLoraSpec, TextStarted, TextStep
from fmplex_broker.specs.heads import Generation
from fmplex_broker.specs.vfm import VfmSpec
from fmplex_worker.backbones.model_paths import check_model_path
from fmplex_worker.tuning.decoder import loop
from fmplex_worker.tuning.decoder.examples import encode
from fmplex_worker.tuning.settings import settings
from fmplex_worker.tuning.writing import write_package


def train_lora(spec: TextLoraSpec, on_event: Callable[[TextEvent], None]) -> FitDone:
    """Train, write the package, and score it beside the backbone alone.

    Raises `InvalidInput` (`data`, `model`), `Conflict` (`out` holds something else) or `NonFiniteOutput` (training diverged).
    """
    began = time.perf_counter()
    refuse_foreign(spec.out)
    records = read(spec.data)
    with settings(spec.seed, spec.threads):
        base, tokenizer = _load(spec.model)
        train, held = loop.split(encode(records, tokenizer, base.config.max_position_embeddings), spec.held_out)
        baseline = loop.score(base, held, spec.batch_tokens)
        model = _adapted(base, spec)
        trained, size = model.get_nb_trainable_parameters()
        tokens = sum(len(example.tokens) for example in train)
        on_event(TextStarted(name=spec.name, texts=len(records), tokens=tokens, parameters=size, trained=trained))

        def report(step: int, loss: float, seen: int) -> None:
            on_event(TextStep(name=spec.name, step=step, steps=spec.steps, loss=loss, tokens=seen))

        loop.train(model, train, spec, 0.0, report)
        accuracy = loop.score(model, held, spec.batch_tokens)
    vfm = VfmSpec(name=spec.name, backbone=spec.backbone, head=Generation(max_tokens=spec.max_tokens))
    done = FitDone(
        name=spec.name, out=spec.out, artifact=write_package(spec.out, vfm, {}, model), metric="accuracy", score=accuracy,
        baseline=baseline, epochs=max(1, round(spec.steps * spec.batch_tokens / tokens)), seconds=time.perf_counter() - began,
    )  # fmt: skip
    on_event(done)
    return done


def _load(model: str) -> tuple[Any, Any]:
    check_model_path(model, "model")
    try:
        return (
            AutoModelForCausalLM.from_pretrained(model, use_safetensors=True, trust_remote_code=False),
            AutoTokenizer.from_pretrained(model, trust_remote_code=False),
        )
    except (OSError, ValueError) as e:
        raise InvalidInput(
            f"{model!r} cannot be loaded: {e}; give a folder or a hub id of a decoder", field="model"
        ) from e


def _adapted(base: Any, spec: TextLoraSpec) -> PeftModel:
    alpha = spec.lora.alpha if spec.lora.alpha is not None else 2 * spec.lora.r
    config = LoraConfig(
        r=spec.lora.r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes any number
        lora_dropout=spec.lora.dropout,
        bias="none",
        target_modules=list(spec.lora.targets) if spec.lora.targets else "all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = spec.backbone  # not a path of this machine
    return model
