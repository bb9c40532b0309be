"""From what was ordered of a tuning job to what a trainer is told. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.tuning import TuneSpec


def fit_of(spec: TuneSpec, data: Path, hosted: BackboneSpec, threads: int | None = None) -> FitSpec | TextLoraSpec:
    """Return what to train on the examples in `data`, as the backbone is `hosted`. What is `auto`, or was not said, is the
    trainer's default. Raises `InvalidInput`."""
    fit = spec.fit
    wanted = {name: value for name, value in spec.hyperparameters.model_dump().items() if value != "auto"}
    common: dict[str, Any] = {
        "name": spec.publish.vfm or spec.id, "data": data, "out": data.parent, "backbone": spec.backbone, "model": hosted.model,
        "revision": hosted.revision, "dtype": hosted.dtype, "seed": spec.seed, "threads": threads, "truncate": fit.truncate,
        "lora": fit.lora, "ia3": fit.ia3, "epochs": wanted.get("n_epochs"), "learning_rate": fit.learning_rate,
        "learning_rate_multiplier": wanted.get("learning_rate_multiplier"), "held_out": fit.held_out, "patience": fit.patience,
    }  # fmt: skip
    if fit.head == "generation":
        own: dict[str, Any] = {
            "positions": hosted.max_tokens, "max_tokens": fit.max_tokens, "system": fit.system,
            "chat_template": fit.chat_template, "batch_size": wanted.get("batch_size"),
        }  # fmt: skip
        return parse(TextLoraSpec, _said(common | own))
    around = fit.input if fit.max_tokens is None else fit.input.model_copy(update={"max_tokens": fit.max_tokens})
    own = {
        "head": fit.head, "pooling": fit.pooling, "hidden": fit.hidden, "shuffle": fit.shuffle, "input": around,
        "max_tokens": hosted.max_tokens, "batch_size": wanted.get("batch_size"),
    }  # fmt: skip
    return parse(FitSpec, _said(common | own))


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
