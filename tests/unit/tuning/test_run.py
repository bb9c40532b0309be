"""A training is the same however it is cut: the same package, bit by bit, and the score that serving reaches."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fmplex_broker.errors import InvalidInput, JobFailed, NonFiniteOutput, TooLarge
from fmplex_broker.packages.package import MANIFEST, Package, make_package
from fmplex_broker.specs.fitting import FitSpec
from fmplex_broker.specs.fitting_text import TextLoraSpec
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_broker.wire.messages import Request
from fmplex_worker.backbones.backbone import Backbone
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.opening import open_engine
from fmplex_worker.protocol import Work
from fmplex_worker.training import RunProgress, TuneOrder
from fmplex_worker.tuning import descent
from fmplex_worker.tuning.head_course import HeadCourse
from fmplex_worker.tuning.head_objective import HeadObjective
from fmplex_worker.tuning.opening import open_run
from fmplex_worker.tuning.run import Run
from tests.support import tiny, tiny_lm
from tests.unit.tuning import learnable
from tests.unit.tuning.conftest import SpecFor

FEW = 40  # lines: two or three steps an epoch
LORA = {"r": 2, "dropout": 0.1}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "a head": ("classification", {"epochs": 5}),
    "a head with hidden layers": ("regression", {"epochs": 4, "hidden": [8]}),
    "LoRA": ("classification", {"epochs": 2, "lora": LORA}),
    "LoRA, comparing": ("similarity", {"epochs": 2, "lora": LORA, "batch_size": 8}),
    "LoRA, groups": ("embedding", {"epochs": 2, "lora": LORA, "batch_size": 8}),
    "(IA)³": ("tagging", {"epochs": 2, "ia3": {"feedforward": ["intermediate.dense"]}}),
}


@pytest.fixture(scope="module")
def bert(model: Path) -> Backbone:
    return load_backbone(BackboneSpec(name="tiny", model=str(model)), "cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_lm.save_model("llama", tmp_path_factory.mktemp("llama"))
    return load_backbone(BackboneSpec(name="tiny", model=str(folder)), "cpu")


def _order(spec_for: SpecFor, kind: str, **options: Any) -> TuneOrder:
    head, given = TRAININGS[kind]
    return TuneOrder(spec_for(head, learnable.MAKERS[head]()[:FEW], **{**given, **options}))


def _texts(path: Path, backbone: Backbone, **options: Any) -> TuneOrder:
    """An order of generated text."""
    things = ("cat", "dog", "house", "paris")
    lines = [_chat(f"a {thing}?" + " the" * (i % 3), f"the {thing} sat") for i, thing in enumerate(things * 4)]
    learnable.write(path, lines)
    given = {"steps": 6, "batch_tokens": 64, "learning_rate": 1e-2, "held_out": 0.25, "lora": LORA, **options}
    spec = {"name": "chat", "data": path, "backbone": "tiny", "model": backbone.spec.model, "out": path.parent / "out"}
    return TuneOrder(TextLoraSpec.model_validate({**spec, **given}))


def _chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _go(run: Run, units: int | None = None) -> int:
    """Run so many units, or all; return how many there were."""
    count = 0
    while (units is None or count < units) and (unit := run.next()) is not None:
        unit.run()
        count += 1
    return count


def _result(run: Run) -> tuple[dict[str, bytes], dict[str, bytes], RunProgress, bytes]:
    return run.package(), run.snapshot().package(), run.progress, run.snapshot().dump()


# --- cut anywhere -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TRAININGS)
def test_cut_anywhere_it_ends_the_same(
    spec_for: SpecFor, bert: Backbone, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_cuts(_order(spec_for, kind), bert, monkeypatch)


def test_generated_text_cut_anywhere_ends_the_same(
    tmp_path: Path, llama: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_cuts(_texts(tmp_path / "data.jsonl", llama), llama, monkeypatch)


def _check_cuts(order: TuneOrder, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut a run at some units, now and then a second time, and compare all that comes of it."""
    whole = open_run(order, backbone, None)
    before = torch.get_rng_state()
    units = _go(whole)
    assert torch.equal(torch.get_rng_state(), before)  # a device thread's own draws stay as they are
    wanted = _result(whole)
    assert wanted[2].ended
    rng = random.Random(1)
    for first in sorted({1, units - 1, *rng.sample(range(1, units), 6)}):
        state = None
        for cut in (first, rng.randint(1, units)):
            run = open_run(order, backbone, state)
            torch.rand(rng.randint(0, 9))
            _go(run, cut)
            due, snapshot = run.checkpoint_due, run.snapshot()
            state, package = snapshot.dump(), snapshot.package() if due else {}
            _go(run, 9)
            assert snapshot.dump() == state  # what runs on does not change it
            assert not due or snapshot.package() == package
        run = open_run(order, backbone, state)
        _go(run)
        assert _result(run) == wanted, f"cut after {first} of {units} units"


def test_a_checkpoint_is_due_once(spec_for: SpecFor, bert: Backbone) -> None:
    run = open_run(_order(spec_for, "LoRA"), bert, None)
    steps = []
    while unit := run.next():
        unit.run()
        if run.checkpoint_due:
            steps.append(run.snapshot().step)
            assert not run.checkpoint_due
    assert steps == sorted(set(steps))
    assert steps[-1] == run.progress.step == run.progress.steps


def test_a_state_is_of_one_training_only(spec_for: SpecFor, bert: Backbone) -> None:
    run = open_run(_order(spec_for, "LoRA"), bert, None)
    _go(run, 12)
    state = run.snapshot().dump()
    for wrong, why in ((state[:-9], "whole"), (b"", "whole"), (b"\x08" + bytes(7) + b"{}" + bytes(9), "whole")):
        with pytest.raises(InvalidInput, match=why):
            open_run(_order(spec_for, "LoRA"), bert, wrong)
    with pytest.raises(InvalidInput, match="another training") as e:
        open_run(_order(spec_for, "LoRA", seed=2), bert, state)
    assert e.value.field == "state"


# --- served as trained --------------------------------------------------------------------------------------------


def _package(run: Run, spec: FitSpec | TextLoraSpec, course: Any) -> Package:
    files = {name: data for name, data in run.package().items() if name != MANIFEST}
    return make_package(course.vfm, files)


@pytest.mark.parametrize("kind", ["a head with hidden layers", "LoRA", "(IA)³"])
def test_serving_reaches_the_score(spec_for: SpecFor, bert: Backbone, model: Path, kind: str) -> None:
    options = {"head": "regression", **TRAININGS[kind][1]}
    order = TuneOrder(spec_for(options.pop("head"), learnable.valued()[:FEW], **options))
    assert isinstance(order.spec, FitSpec)
    course = HeadCourse(order, order.spec, bert)
    run = Run(course, "", None)
    _go(run)
    engine = open_engine(BackboneSpec(name="tiny", model=str(model)), WorkerSpec(device="cpu"))
    package = _package(run, order.spec, course)
    engine.load(engine.fit(package))
    held = learnable.valued()[:FEW][-len(course.data.held) :]
    jobs = engine.prepare([(package.digest, Request({"text": line["text"]}, {})) for line in held])
    answers = engine.step([Work(job, 0) for job in jobs]).results  # type: ignore[arg-type]
    errors = sum((answer["value"] - line["value"]) ** 2 for answer, line in zip(answers, held, strict=True))
    mean = sum(line["value"] for line in learnable.valued()[: FEW - len(held)]) / (FEW - len(held))
    score = 1 - errors / sum((line["value"] - mean) ** 2 for line in held)
    assert run.progress.held_out is not None
    assert run.progress.held_out.score == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("own", [False, True], ids=["the backbone's template", "its own template"])
def test_generated_text_is_served_as_it_was_trained(tmp_path: Path, llama: Backbone, own: bool) -> None:
    """Every token of the held-out answers, asked for one by one: the engine finds as many as the run did."""
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<eos>{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant] {% endif %}"
    options = {"chat_template": template, "system": "short"} if own else {}
    order = _texts(tmp_path / "data.jsonl", llama, steps=40, **options)
    run = open_run(order, llama, None)
    course: Any = run._course
    _go(run)
    engine = tiny_lm.open_tiny(Path(llama.spec.model), pass_units=4096)
    package = _package(run, order.spec, course)
    engine.load(engine.fit(package))
    right = total = 0
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for line, (tokens, learn) in zip(lines[-len(course.held) :], course.held, strict=True):
        asked = tiny_lm.prepare(engine, package.digest, {"messages": line["messages"][:-1]})
        assert list(asked.sequence.tokens) == tokens[:learn]  # as it is asked, so it was trained
        jobs = [
            tiny_lm.prepare(
                engine, package.digest, tokens[:at], temperature=0.0, max_tokens=1, logprobs=0, ignore_eos=True
            )
            for at in range(learn, len(tokens))
        ]
        outputs = tiny_lm.drive(engine, jobs)
        found = [output["logprobs"][0]["id"] for output in outputs]
        right += sum(a == b for a, b in zip(found, tokens[learn:], strict=True))
        total += len(jobs)
    assert run.progress.held_out is not None
    assert run.progress.held_out.score == pytest.approx(right / total, abs=1e-6)
    assert run.progress.held_out.score > run.progress.held_out.baseline


# --- best, and early ends -----------------------------------------------------------------------------------------


def test_it_stops_early_and_gives_its_best_state(spec_for: SpecFor, bert: Backbone) -> None:
    order = _order(spec_for, "LoRA", epochs=30, patience=2, learning_rate=3e-2)
    run = open_run(order, bert, None)
    _go(run)
    assert run.progress.ended == "stopped early"
    assert run.progress.best_step < run.progress.step < run.progress.steps
    assert run.package() != run.snapshot().package()
    assert run.progress.held_out is not None


def test_a_file_that_validates_takes_the_place_of_the_slice(spec_for: SpecFor, bert: Backbone, tmp_path: Path) -> None:
    order = _order(spec_for, "LoRA")
    path = learnable.write(tmp_path / "more.jsonl", learnable.labelled()[-20:])
    apart = TuneOrder(order.spec, validation=path)
    assert isinstance(apart.spec, FitSpec)
    course = HeadCourse(apart, apart.spec, bert)
    assert len(course.data.chosen.validate) == 20
    assert course.data.whole == course.data.chosen.fit
    run = open_run(apart, bert, None)
    _go(run)
    assert run.progress.validation_loss is not None


def test_a_batch_of_texts_has_so_many(tmp_path: Path, llama: Backbone) -> None:
    run = open_run(_texts(tmp_path / "data.jsonl", llama, batch_size=5, epochs=2), llama, None)
    assert run.progress.steps == 2 * 3  # of twelve texts
    _go(run)
    assert run.progress.epoch == 2


def test_it_goes_on_from_a_version(spec_for: SpecFor, bert: Backbone) -> None:
    order = _order(spec_for, "LoRA")
    assert isinstance(order.spec, FitSpec)
    course = HeadCourse(order, order.spec, bert)
    first = Run(course, "", None)
    _go(first)
    start = _package(first, order.spec, course)
    again = open_run(TuneOrder(order.spec, start=start), bert, None)
    name = "adapter/adapter_model.safetensors"
    assert again.snapshot().package()[name] == first.package()[name]
    _go(again)
    assert again.snapshot().package()[name] != first.package()[name]


def test_what_is_gone_on_with_keeps_its_adapter(spec_for: SpecFor, bert: Backbone) -> None:
    """Another one would be a new vFM, and what was asked for must not be dropped in silence."""
    order = _order(spec_for, "LoRA")
    assert isinstance(order.spec, FitSpec)
    course = HeadCourse(order, order.spec, bert)
    first = Run(course, "", None)
    _go(first)
    start = _package(first, order.spec, course)
    others: list[tuple[dict[str, Any], str]] = [
        ({"lora": None, "ia3": {}}, "ia3"), ({"lora": {"r": 3}}, "lora.r"),
        ({"lora": {"r": LORA["r"], "alpha": 99}}, "lora.alpha"),
        ({"lora": {"r": LORA["r"], "targets": ["query"]}}, "lora.targets"),
    ]  # fmt: skip
    for other, field in others:
        wanted = _order(spec_for, "LoRA", **other).spec
        with pytest.raises(InvalidInput, match="what is gone on with has") as e:
            open_run(TuneOrder(wanted, start=start), bert, None)
        assert e.value.field == field
    open_run(TuneOrder(_order(spec_for, "LoRA", lora={"r": LORA["r"], "dropout": 0.5}).spec, start=start), bert, None)


def test_without_weights_or_adapter_there_is_nothing_to_go_on_with(spec_for: SpecFor, bert: Backbone) -> None:
    order = _order(spec_for, "LoRA, comparing", lora=None)
    assert isinstance(order.spec, FitSpec)
    course = HeadCourse(order, order.spec, bert)
    first = Run(course, "", None)
    _go(first)
    start = _package(first, order.spec, course)
    with pytest.raises(InvalidInput, match="nothing to train") as e:
        open_run(TuneOrder(order.spec, start=start), bert, None)
    assert e.value.field == "lora"


def test_a_label_that_only_validates_is_named(spec_for: SpecFor, bert: Backbone, tmp_path: Path) -> None:
    """Its loss would be that of nothing."""
    path = learnable.write(
        tmp_path / "more.jsonl", [*learnable.labelled()[-3:], {"text": "the cat", "label": "strange"}]
    )
    with pytest.raises(InvalidInput, match=r"line 4: label\(s\) \['strange'\], which no example to train on has") as e:
        open_run(TuneOrder(_order(spec_for, "a head").spec, validation=path), bert, None)
    assert e.value.field == "validation"


# --- what is not finite -------------------------------------------------------------------------------------------


def _bad_at(monkeypatch: pytest.MonkeyPatch, bad: Callable[[int, int], bool]) -> None:
    """Make losses NaN: `bad(step, call)` says where."""
    real, calls = HeadObjective.loss, [0]

    def loss(self: HeadObjective, part: Sequence[int], hidden: Tensor, key: Any) -> Tensor:
        calls[0] += 1
        value = real(self, part, hidden, key)
        return value * float("nan") if bad(key.step, calls[0]) else value

    monkeypatch.setattr(HeadObjective, "loss", loss)


def test_a_step_without_a_finite_loss_is_dropped(
    spec_for: SpecFor, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bad_at(monkeypatch, lambda step, _: step == 1)
    run = open_run(_order(spec_for, "LoRA"), bert, None)
    _go(run)
    assert run.progress.ended == "finished"
    (warning,) = run.progress.warnings
    assert "step 2 was dropped" in warning


def test_three_in_a_row_go_back_at_half_the_rate_once(
    spec_for: SpecFor, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "NOTED_EVERY", 2)
    order = _order(spec_for, "LoRA", epochs=60, batch_size=4)
    per_epoch = 6
    _bad_at(monkeypatch, lambda _, call: per_epoch + 2 < call <= per_epoch + 5)
    run = open_run(order, bert, None)
    cut: bytes | None = None
    while unit := run.next():
        unit.run()
        if cut is None and any("half" in warning for warning in run.progress.warnings):
            cut = run.snapshot().dump()
        if run.progress.step == 3 * per_epoch:
            break
    *dropped, back = run.progress.warnings
    assert ["was dropped" in warning for warning in dropped] == [True] * 3
    assert back == "back to step 8, at half the learning rate"
    assert cut is not None
    monkeypatch.undo()
    monkeypatch.setattr(descent, "NOTED_EVERY", 2)
    resumed = open_run(order, bert, cut)
    while resumed.progress.step < 3 * per_epoch and (unit := resumed.next()):
        unit.run()
    assert resumed.snapshot().package() == run.snapshot().package()


def test_it_fails_when_it_diverges_at_half_the_rate_too(
    spec_for: SpecFor, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bad_at(monkeypatch, lambda step, _: step >= 2)
    run = open_run(_order(spec_for, "LoRA", epochs=6), bert, None)
    with pytest.raises(NonFiniteOutput, match=r"diverged.*half the rate") as e:
        _go(run)
    assert e.value.field == "learning_rate"


# --- out of memory ------------------------------------------------------------------------------------------------


def _narrow(monkeypatch: pytest.MonkeyPatch, tokens: int) -> list[int]:
    """Let the device have room for so many tokens of a micro-batch; returns how many those had that fitted."""
    real, fitted = HeadObjective.loss, list[int]()

    def loss(self: HeadObjective, part: Sequence[int], hidden: Tensor, key: Any) -> Tensor:
        if len(hidden) > tokens:
            raise torch.OutOfMemoryError("no room")
        fitted.append(len(hidden))
        return real(self, part, hidden, key)

    monkeypatch.setattr(HeadObjective, "loss", loss)
    return fitted


def test_out_of_memory_halves_micro_batches_and_learns_the_same(
    spec_for: SpecFor, bert: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = _order(spec_for, "LoRA", lora={"r": 2})
    wide = open_run(order, bert, None)
    _go(wide)
    fitted = _narrow(monkeypatch, 40)
    narrow = open_run(order, bert, None)
    _go(narrow)
    assert max(fitted) <= 40 < 10 * len(fitted)
    assert narrow.progress.tokens == wide.progress.tokens
    assert narrow.progress.loss == pytest.approx(wide.progress.loss, rel=1e-3)  # one normaliser, however it is cut
    state = narrow.snapshot().dump()
    monkeypatch.undo()
    again = open_run(order, bert, state)  # elsewhere, where there is room: cut as before, so that nothing changes
    _go(again)
    assert again.package() == narrow.package()


@pytest.mark.parametrize("kind", ["LoRA", "LoRA, comparing"])
def test_what_never_fits_fails(spec_for: SpecFor, bert: Backbone, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _narrow(monkeypatch, 3)
    with pytest.raises(JobFailed, match="does not fit"):
        _go(open_run(_order(spec_for, kind), bert, None))


# --- what is learnt of which text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LoRA", "(IA)³"])
def test_each_text_has_its_own_target(spec_for: SpecFor, bert: Backbone, kind: str) -> None:
    """The loss of a batch of texts of different lengths is the sum of theirs alone."""
    order = _order(spec_for, kind)
    assert isinstance(order.spec, FitSpec)
    course = HeadCourse(order, order.spec, bert)
    run = Run(course, "", None)
    objective = course._objective
    assert objective is not None
    while objective.head is None:
        unit = run.next()
        assert unit is not None
        unit.run()
    part = objective.batches(0)[0]
    alone = sum(_loss(objective, [i], bert) for i in part)
    assert _loss(objective, part, bert) == pytest.approx(alone, rel=1e-5)


def _loss(objective: HeadObjective, part: Sequence[int], backbone: Backbone) -> float:
    from fmplex_worker.tuning.units import MicroBatch
    from fmplex_worker.tuning.walk import Walk

    texts = [text for i in part for text in objective.texts(i)]
    micro = MicroBatch(
        Walk(backbone),
        objective.learnt,
        texts,
        lambda h: objective.loss(part, h, None),
        keep=9,
        key=None,  # type: ignore[arg-type]
    )
    for unit in micro.units():
        unit.run()
    return micro.value


# --- beside passes ------------------------------------------------------------------------------------------------


def test_passes_and_units_do_not_touch_each_other(spec_for: SpecFor, bert: Backbone, model: Path) -> None:
    order = _order(spec_for, "LoRA", epochs=1)
    alone = open_run(order, bert, None)
    _go(alone)
    engine = open_engine(BackboneSpec(name="tiny", model=str(model)), WorkerSpec(device="cpu"), open_run)
    digest = tiny.load(engine, tiny.FEATURES)
    texts = [(digest, ids) for ids in tiny.ids(3, 9, 5)]
    before = tiny.features(engine, *texts)
    run = engine.tune(order, None)
    while unit := run.next():
        unit.run()
        assert all(map(torch.equal, tiny.features(engine, *texts), before))
    assert run.package() == alone.package()


def test_an_engine_without_a_trainer_trains_nothing(spec_for: SpecFor, model: Path) -> None:
    engine = open_engine(BackboneSpec(name="tiny", model=str(model)), WorkerSpec(device="cpu"))
    with pytest.raises(InvalidInput, match="nothing is trained here"):
        engine.tune(_order(spec_for, "LoRA"), None)


def _number(text: str, after: str) -> int:
    return int(text.split(f" {after} ")[1].split(" bytes")[0].replace(",", ""))


def test_a_limit_of_memory_changes_nothing_but_memory(spec_for: SpecFor, bert: Backbone) -> None:
    order = _order(spec_for, "LoRA", epochs=1)
    ample = open_run(order, bert, None)
    _go(ample)
    with pytest.raises(TooLarge, match="what is learnt") as e:
        open_run(replace(order, memory=64), bert, None)
    assert e.value.field == "worker.tuning.bytes"
    held = 1 + _number(str(e.value), "take")
    with pytest.raises(TooLarge, match="to learn from 512 tokens at once") as e:
        open_run(replace(order, memory=held), bert, None)
    least = held + _number(str(e.value), "takes")
    tight = open_run(replace(order, memory=least), bert, None)  # every layer is computed again
    _go(tight)
    assert tight.package() == ample.package()
