"""Every head learns, is measured honestly and gives a package that serving accepts and answers alike from."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from fmplex_broker.errors import InvalidInput
from fmplex_broker.examples.records import LabelRecord
from fmplex_broker.packages.package import ADAPTER_CONFIG, HEAD, read_package
from fmplex_broker.specs.fitting import FitDone, FitEpoch, FitEvent, FitSpec, FitStarted
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.protocol import Work
from fmplex_worker.tuning import fit
from fmplex_worker.tuning.frozen import HeadPath
from fmplex_worker.tuning.head import apply_head
from fmplex_worker.tuning.linear_tasks import ClassificationTask
from fmplex_worker.tuning.slices import validation_split
from fmplex_worker.tuning.tasks import Predictions
from tests.support.tiny import save_model
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor

LORA = {"r": 4}
OUTPUTS = {"classification": 3, "classification:multi_label": 3, "regression": 1, "tagging": 3, "ranking": 1}


def _fitted(spec: FitSpec) -> tuple[FitDone, list[FitEvent]]:
    events: list[FitEvent] = []
    return fit(spec, events.append), events


@pytest.mark.parametrize("lora", [None, LORA], ids=["head", "lora"])
@pytest.mark.parametrize("head", learnable.MAKERS)
def test_every_head_beats_its_baseline(spec_for: SpecFor, head: str, lora: dict[str, Any] | None) -> None:
    spec = spec_for(head, lora=lora, learning_rate=3e-3 if lora else None)
    done, events = _fitted(spec)

    assert isinstance(events[0], FitStarted)
    assert (events[0].train, events[0].held_out) == (100, 50)
    epochs = [e for e in events if isinstance(e, FitEpoch)]
    trained = lora is not None or head in OUTPUTS
    assert [e.epoch for e in epochs] == list(range(1, done.epochs + 1))
    assert (done.epochs > 0) == trained
    assert events[-1] == done
    if trained:
        assert done.score >= done.baseline + 0.25, done

    package = read_package(spec.out)
    assert package.digest == done.artifact
    assert (ADAPTER_CONFIG in package.files) == (lora is not None)
    shapes = {name: tuple(t.shape) for name, t in load(package.files[HEAD]).items()} if HEAD in package.files else {}
    assert shapes == ({"weight": (OUTPUTS[head], 32), "bias": (OUTPUTS[head],)} if head in OUTPUTS else {})


def test_a_sorted_spreadsheet_is_learned_from_once_it_is_shuffled(spec_for: SpecFor, tmp_path: Path) -> None:
    """As somebody exports it: sorted by a label that is a number, and with a column more."""
    numbers = {"animal": 1, "mat": 2, "place": 10}
    rows = sorted((numbers[line["label"]], line["text"]) for line in learnable.MAKERS["classification"]())
    with (tmp_path / "größe.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "label", "text"), *((n, *row) for n, row in enumerate(rows))])
    spec = spec_for("classification").model_copy(update={"data": tmp_path / "größe.csv"})
    with pytest.raises(InvalidInput, match="sorted by label"):
        fit(spec, lambda _: None)
    done, events = _fitted(spec.model_copy(update={"shuffle": True}))
    assert isinstance(events[0], FitStarted)
    assert (sorted(events[0].labels), events[0].ignored) == (["1", "10", "2"], ("id",))
    assert done.baseline > 0.15
    assert done.score >= done.baseline + 0.25, done


@pytest.mark.parametrize("lora", [None, pytest.param(LORA, marks=pytest.mark.long)], ids=["head", "lora"])
@pytest.mark.parametrize("head", OUTPUTS)
def test_a_head_with_hidden_layers_learns_too(spec_for: SpecFor, head: str, lora: dict[str, Any] | None) -> None:
    spec = spec_for(head, hidden=(32,), lora=lora, learning_rate=3e-3 if lora else None)
    done, _ = _fitted(spec)
    assert done.score >= done.baseline + 0.1, done
    package = read_package(spec.out)
    assert package.digest == done.artifact
    assert package.spec.head.hidden == (32,)  # type: ignore[union-attr]
    shapes = {name: tuple(tensor.shape) for name, tensor in load(package.files[HEAD]).items()}
    assert shapes["hidden.0.weight"] == (32, 32)
    assert shapes["weight"] == (OUTPUTS[head], 32)


def test_only_hidden_layers_learn_what_is_not_linear() -> None:
    """Exclusive or: a linear head cannot do better than guessing."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 2, generator=generator)
    labels = ["same" if a * b > 0 else "apart" for a, b in rows.tolist()]
    task = ClassificationTask([LabelRecord(text="x", label=label) for label in labels], "mean")
    items = [task.item(LabelRecord(text="x", label=label), ()) for label in labels]
    scores = []
    for hidden in ((), (16,), (16, 8)):
        spec = FitSpec(
            name="x", data=Path("x"), backbone="b", model="m", out=Path("o"), head="classification", hidden=hidden
        )
        path = HeadPath(task, spec)
        for unit in path.units(items, rows, validation_split(items, generator), range(len(items))):
            unit.run()
        head = path.head_of()
        plain = apply_head(head.folded(), rows)
        assert torch.allclose(plain, head(rows), atol=1e-4)
        scores.append(task.score(Predictions(plain, items), Predictions(plain, items)))
    assert scores[0] < 0.7
    assert min(scores[1:]) > 0.9


@pytest.mark.parametrize("lora", [None, LORA], ids=["head", "lora"])
@pytest.mark.parametrize("head", learnable.MAKERS)
def test_serving_reaches_the_score_that_was_reported(
    spec_for: SpecFor, model: Path, head: str, lora: dict[str, Any] | None
) -> None:
    spec = spec_for(head, lora=lora, pooling="cls" if head == "ranking" else "mean", epochs=4)
    done, _ = _fitted(spec)
    engine = open_engine(BackboneSpec(name="tiny", model=str(model)), WorkerSpec(device="cpu"))
    engine.load(engine.fit(read_package(spec.out)))
    held = learnable.MAKERS[head]()[-50:]
    answers = _answers(engine, done.artifact, held)
    right = [_right(answer, line) for answer, line in zip(answers, held, strict=True)]
    if done.metric == "accuracy" and head not in ("similarity", "embedding"):
        assert done.score == pytest.approx(sum(right) / len(right))
    elif done.metric == "r2":
        errors = sum((answer["value"] - line["value"]) ** 2 for answer, line in zip(answers, held, strict=True))
        mean = sum(line["value"] for line in learnable.MAKERS[head]()[:100]) / 100
        assert done.score == pytest.approx(1 - errors / sum((line["value"] - mean) ** 2 for line in held), abs=1e-3)
    elif done.metric in ("micro_f1", "span_f1"):
        assert done.score == pytest.approx(_f1(answers, held))


@pytest.mark.parametrize("head", ["tagging", "ranking", "classification", "similarity"])
def test_what_the_vfm_puts_around_texts_is_around_them_in_training(spec_for: SpecFor, model: Path, head: str) -> None:
    around = {
        "template": "the house: {text} sat",
        "pair_template": "{text_pair} on",
        "max_tokens": 24,
        "truncate": True,
    }
    spec = spec_for(head, input=around, lora=LORA, epochs=3)
    done, _ = _fitted(spec)
    package = read_package(spec.out)
    assert package.spec.input.model_dump(exclude_defaults=True) == around
    engine = open_engine(BackboneSpec(name="tiny", model=str(model)), WorkerSpec(device="cpu"))
    engine.load(engine.fit(package))
    held = learnable.MAKERS[head]()[-50:]
    answers = _answers(engine, done.artifact, held)
    if head == "tagging":
        assert done.score == pytest.approx(_f1(answers, held))
    elif head != "similarity":
        assert done.score == pytest.approx(sum(map(_right, answers, held)) / len(held))


LONG = {"text": "cat dog " * 60, "label": "b"}


@pytest.mark.parametrize("lora", [None, LORA], ids=["head", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_backbone_is_trained_as_it_is_hosted(
    spec_for: SpecFor, model: Path, dtype: str, lora: dict[str, Any] | None
) -> None:
    """With its dtype and its length; long texts are cut, in training and when the vFM is called."""
    lines = [*learnable.MAKERS["classification"](), LONG]
    spec = spec_for("classification", lines, lora=lora, dtype=dtype, max_tokens=20, truncate=True, epochs=2)
    done, _ = _fitted(spec)
    hosted = BackboneSpec(name="tiny", model=str(model), dtype=dtype, max_tokens=20)  # type: ignore[arg-type]
    engine = open_engine(hosted, WorkerSpec(device="cpu"))
    package = read_package(spec.out)
    assert package.spec.input.truncate
    engine.load(engine.fit(package))
    held = lines[-50:]
    right = [_right(answer, line) for answer, line in zip(_answers(engine, done.artifact, held), held, strict=True)]
    assert done.score == pytest.approx(
        sum(right) / len(right), abs=0.021
    )  # half of floats' bits: one may be near a tie


@pytest.mark.parametrize(("pooling", "prompt"), [("cls", None), ("mean", "on ")])
def test_the_backbone_says_the_pooling(spec_for: SpecFor, tmp_path: Path, pooling: str, prompt: str | None) -> None:
    """What is trained is what is served, also where the backbone has a prompt of its own, which the training does not see."""
    folder = save_model("bert", tmp_path / "st")
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    rows = [
        {"idx": n, "type": f"sentence_transformers.models.{kind}", "path": path} for n, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    settings = {"prompts": {"p": prompt or ""}, "default_prompt_name": "p"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    spec = spec_for("embedding", model=str(folder))
    _fitted(spec)
    package = read_package(spec.out)
    assert package.spec.head.pooling == pooling  # type: ignore[union-attr]
    assert package.spec.input.template == ("{text}" if prompt else None)


def _answers(engine: PackedEngine, version: str, lines: list[dict[str, Any]]) -> list[Any]:
    inputs = [{key: line[key] for key in ("text", "text_pair") if key in line} for line in lines]
    prepared = engine.prepare([(version, Request(value, {})) for value in inputs])
    return list(engine.step([Work(job, 0) for job in prepared]).results)  # type: ignore[arg-type]


def _right(answer: Any, line: dict[str, Any]) -> bool:
    if "label" in answer:
        return bool(answer["label"] == line["label"])
    return isinstance(line.get("label"), int) and "score" in answer and (answer["score"] > 0.5) == line["label"]


def _f1(answers: list[Any], lines: list[dict[str, Any]]) -> float:
    hits = total = 0
    for answer, line in zip(answers, lines, strict=True):
        if "labels" in line:
            found, gold = set(answer["labels"]), set(line["labels"])
        else:
            found = {(s["start"], s["end"], s["label"]) for s in answer["spans"]}
            gold = {(s["start"], s["end"], s["label"]) for s in line["spans"]}
        hits, total = hits + len(found & gold), total + len(found) + len(gold)
    return 2 * hits / total
