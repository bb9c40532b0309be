"""What a trainer is told is what was ordered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmplex_broker.specs.files import new_file_id
from fmplex_broker.specs.fitting import FitSpec, Ia3Spec, LoraSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import BackboneSpec
from fmplex_broker.specs.heads import InputSpec
from fmplex_broker.specs.schema import parse
from fmplex_broker.specs.tune_fits import fit_of
from fmplex_broker.specs.tuning import TuneSpec, new_tune_id

DATA = Path("/data/examples.jsonl")
HOSTED = BackboneSpec(name="minilm", model="folder", revision="r1", dtype="bfloat16", max_tokens=128)


def ordered(**more: Any) -> TuneSpec:
    body = {
        "id": new_tune_id(), "owner": "me", "backbone": "minilm", "model": "minilm", "training_file": new_file_id(),
        "publish": {"how": "as", "vfm": "mine"},
    }  # fmt: skip
    return parse(TuneSpec, body | more)


def test_a_head_with_all_that_was_said() -> None:
    spec = ordered(
        hyperparameters={"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 0.5}, seed=7,
        fit={
            "head": "classification", "lora": {"r": 4}, "hidden": [16], "pooling": "cls", "max_tokens": 64, "truncate": True,
            "learning_rate": 0.01, "held_out": 0.25, "shuffle": True, "patience": 2, "input": {"template": "mail: {text}"},
        },
    )  # fmt: skip
    assert fit_of(spec, DATA, HOSTED, 2) == FitSpec(
        name="mine", data=DATA, out=DATA.parent, backbone="minilm", model="folder", revision="r1", dtype="bfloat16",
        head="classification", max_tokens=128, truncate=True, input=InputSpec(template="mail: {text}", max_tokens=64),
        pooling="cls", hidden=(16,), lora=LoraSpec(r=4), epochs=3,
        batch_size=8, learning_rate=0.01, learning_rate_multiplier=0.5, seed=7, held_out=0.25, shuffle=True, patience=2,
        threads=2,
    )  # fmt: skip


def test_generation_with_all_that_was_said() -> None:
    spec = ordered(
        hyperparameters={"n_epochs": 3, "batch_size": 4}, publish={"how": "none"},
        fit={"head": "generation", "ia3": {"targets": ["q_proj"]}, "max_tokens": 64, "system": "Be brief.", "patience": 2},
    )  # fmt: skip
    made = fit_of(spec, DATA, HOSTED)
    assert made == TextLoraSpec(
        name=spec.id, data=DATA, out=DATA.parent, backbone="minilm", model="folder", revision="r1", dtype="bfloat16",
        positions=128, max_tokens=64, system="Be brief.", ia3=Ia3Spec(targets=("q_proj",)), epochs=3, batch_size=4, patience=2,
    )  # fmt: skip


def test_what_was_not_said_is_the_trainers_default() -> None:
    for head in ("classification", "generation"):
        made = fit_of(ordered(fit={"head": head}), DATA, BackboneSpec(name="minilm", model="folder", dtype="auto"))
        assert made.dtype == "auto"
        told = {"name", "data", "out", "backbone", "model", "head", "kind", "dtype"}
        assert made.model_fields_set - told <= {"seed", "truncate", "hidden", "shuffle", "system", "pooling", "input"}
        assert made.model_dump(exclude=told) == type(made)(
            **{name: getattr(made, name) for name in told & type(made).model_fields.keys()}
        ).model_dump(exclude=told)
