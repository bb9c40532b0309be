"""The texts and voices of the demo of generation, what is trained again and what is not, and how it is shown."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.text import Text

from fmplex.demo.generation import training
from fmplex.demo.generation.answers import Answer, ask_all, draw
from fmplex.demo.generation.measuring import GenerationSharing, memory
from fmplex.demo.generation.recipe import FULL, QUICK, Recipe, TrainingPlan, cache_folder, make_plan
from fmplex.demo.generation.report import GenerationReport
from fmplex.demo.generation.texts import QuestionAnswer, pairs
from fmplex.demo.generation.voices import MAX_TOKENS, VOICES, unrecognised
from fmplex.results import AsyncTextStream, Result
from fmplex_broker.errors import NonFiniteOutput
from fmplex_broker.specs.fitting import FitDone, FitFailed
from fmplex_broker.specs.fitting_text import TextEvent, TextSpec, TextStarted, TextStep
from fmplex_broker.wire.stats import ResidencyStats, WorkerStats
from tests.support.results import made_result

PAIRS = [
    QuestionAnswer(f"What does f{i} do?", f"Return number {i} of the list, or None if there are fewer. It is fast.")
    for i in range(9)
]


@pytest.fixture(scope="module")
def found() -> list[QuestionAnswer]:
    return pairs()


# --- texts and voices ---


def test_python_says_enough_about_itself(found: list[QuestionAnswer]) -> None:
    assert len(found) >= 200
    assert len({pair.answer for pair in found}) == len(found)
    for pair in found:
        assert pair.answer.isascii()
        assert pair.answer[-1] in ".!?"
        assert pair.question.endswith("?")


def test_texts_are_the_same_every_time(found: list[QuestionAnswer]) -> None:
    assert pairs() == found


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.name)
def test_a_voice_is_heard_in_what_it_says_and_no_other_is(voice: Any, found: list[QuestionAnswer]) -> None:
    said = [voice.rewrite(pair.answer) for pair in found]
    assert unrecognised({voice.name: said}) == []
    others = [other.name for other in VOICES if other is not voice]
    assert unrecognised(dict.fromkeys(others, said)) == others


def test_the_voices_differ_in_rank_and_one_is_the_backbone_itself() -> None:
    ranks = [voice.rank for voice in VOICES]
    assert ranks.count(0) == 1
    assert len(set(ranks)) >= 4


def test_what_a_voice_does_to_a_text() -> None:
    text = "Return a list of the values, using sep as the separator. Otherwise raise an error."
    said = {voice.name: voice.rewrite(text) for voice in VOICES}
    assert said["plain"] == text
    assert said["lister"].splitlines()[0] == "1. Return a list of the values"
    assert said["pirate"].startswith("Arr! Return a crew o' th' treasures")
    assert said["poet"].splitlines()[0] == "return a list of"
    assert said["sergeant"].endswith("Otherwise raise an error! SIR, YES SIR!")


# --- what is trained, and what is kept ---


def test_the_same_texts_and_recipe_are_the_same_models(tmp_path: Path) -> None:
    one, two = make_plan(QUICK, PAIRS, tmp_path / "a"), make_plan(QUICK, PAIRS, tmp_path / "b")
    assert _names(one) == _names(two)
    assert len(set(_names(one))) == len(VOICES)


def test_another_text_is_another_decoder_and_other_voices(tmp_path: Path) -> None:
    one, two = (
        make_plan(QUICK, PAIRS, tmp_path),
        make_plan(QUICK, [*PAIRS, QuestionAnswer("What is x?", "It is the last.")], tmp_path),
    )
    assert not set(_names(one)) & set(_names(two))


def test_another_recipe_for_the_voices_leaves_the_decoder(tmp_path: Path) -> None:
    one = make_plan(QUICK, PAIRS, tmp_path)
    two = make_plan(replace(QUICK, lora=QUICK.lora | {"steps": 7}), PAIRS, tmp_path)
    assert one.decoder.out == two.decoder.out
    assert not {spec.out for spec in one.loras} & {spec.out for spec in two.loras}


def test_only_what_is_not_there_is_trained(tmp_path: Path) -> None:
    plan = make_plan(QUICK, PAIRS, tmp_path)
    assert [spec.name for spec in plan.missing] == [plan.decoder.name, *(voice.name for voice in VOICES if voice.rank)]
    plan.decoder.out.mkdir()
    plan.loras[0].out.mkdir()
    assert plan.missing == list(plan.loras[1:])


def test_unasked_the_decoder_is_plain_and_asked_it_has_read_every_voice(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in make_plan(QUICK, PAIRS, tmp_path).decoder.data.read_text().splitlines()]
    by_system: dict[str, list[str]] = {}
    for line in lines:
        *system, _, answer = line["messages"]
        by_system.setdefault(system[0]["content"] if system else "", []).append(answer["content"])
    assert sorted(by_system[""]) == sorted(pair.answer for pair in PAIRS)
    assert len(by_system) == len(VOICES)
    assert all(len(said) == len(PAIRS) for said in by_system.values())


@pytest.mark.parametrize("recipe", [FULL, QUICK])
def test_what_is_asked_on_stage_is_among_what_was_learnt(
    recipe: Recipe, tmp_path: Path, found: list[QuestionAnswer]
) -> None:
    plan = make_plan(recipe, found, tmp_path)
    learnt = {json.loads(line)["messages"][0]["content"] for line in plan.loras[0].data.read_text().splitlines()}
    assert len(plan.prompts) == recipe.prompts
    assert set(plan.prompts) <= learnt
    assert all(spec.max_tokens == MAX_TOKENS for spec in plan.loras)


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().is_relative_to(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().is_relative_to(Path.home())


# --- training, as it is shown ---


def _events(*events: TextEvent) -> Any:
    def run(specs: Sequence[TextSpec]) -> Iterator[TextEvent]:
        yield from events

    return run


def test_what_the_decoder_says_while_it_learns_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = _console()
    started = TextStarted(name="pocket", texts=9, tokens=900, parameters=2_700_000, trained=2_700_000)
    step = TextStep(name="pocket", step=50, steps=100, loss=1.5, tokens=450, sample="Return the [list] of the list")
    monkeypatch.setattr(training, "run", _events(started, step))
    assert training.train(out, make_plan(QUICK, PAIRS, tmp_path)) == len(VOICES)
    assert "2.7 M parameters" in _text(out)
    assert "50 %  loss 1.50  Return the [list] of the list" in _text(out)


def test_the_time_left_is_that_of_all_that_is_to_be_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = make_plan(QUICK, PAIRS, tmp_path)
    pocket, lora, loras = plan.decoder.steps, plan.loras[0].steps, len(plan.loras)
    seconds = iter([0.0, 0.0, 60.0, 100.0, 103.0])  # the drawing begins; each model does, and tells of a step
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    console = Console(file=io.StringIO(), width=80)
    with Progress(TextColumn("{task.fields[note]}"), console=console, disable=True) as progress:
        drawn = training._TrainingProgress(console, progress, plan.missing, "")
        drawn.show(TextStarted(name="pocket", texts=9, tokens=900, parameters=2_700_000, trained=2_700_000))
        drawn.show(TextStep(name="pocket", step=50, steps=pocket, loss=1.5, tokens=45000))
        assert f"about {60 / 50 * (pocket + loras * lora - 50):.0f} s left" in progress.tasks[0].fields["note"]
        drawn.show(_done("pocket", plan.decoder.out))
        drawn.show(TextStarted(name=plan.loras[0].name, texts=9, tokens=900, parameters=2_700_000, trained=9000))
        drawn.show(TextStep(name=plan.loras[0].name, step=10, steps=lora, loss=1.5, tokens=9000))
        assert f"about {3 / 10 * (loras * lora - 10):.0f} s left" in progress.tasks[0].fields["note"]


def test_the_time_left_is_shown_in_a_terminal_of_80_characters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = Console(file=io.StringIO(), width=80, force_terminal=True)
    started = TextStarted(name="pocket", texts=9, tokens=900, parameters=2_700_000, trained=2_700_000)
    step = TextStep(name="pocket", step=50, steps=1200, loss=10.25, tokens=4500)
    monkeypatch.setattr(training, "run", _events(started, step))
    seconds = iter([0.0, 0.0])
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(seconds, 0.5)))
    training.train(out, make_plan(FULL, PAIRS, tmp_path))
    assert re.search(r"loss 10\.25  9000 tokens/s  about 14 s left \d:\d\d:\d\d", Text.from_ansi(_text(out)).plain)


def test_nothing_is_started_when_all_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = make_plan(QUICK, PAIRS, tmp_path)
    for spec in plan.missing:
        spec.out.mkdir()
    monkeypatch.delattr(training, "run")
    assert training.train(_console(), plan) == 0


def test_a_training_that_fails_is_a_typed_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        training, "run", _events(FitFailed(name="pocket", code="non_finite_output", message="diverged"))
    )
    with pytest.raises(NonFiniteOutput, match="diverged"):
        training.train(_console(), make_plan(QUICK, PAIRS, tmp_path))


# --- on stage ---


class Speaker:
    """In place of a client: every vFM says its name and the question, in pieces; all of them at once."""

    def __init__(self) -> None:
        self.together = asyncio.Barrier(len(VOICES))

    def stream(self, vfm: str, value: dict[str, Any], **params: Any) -> AsyncTextStream:
        return AsyncTextStream(self._pieces(vfm, value["messages"][0]["content"]))

    async def _pieces(self, vfm: str, question: str) -> AsyncIterator[str | Result]:
        await self.together.wait()
        for piece in (vfm, " says\n", question):
            yield piece
        yield made_result({"text": "", "completion_tokens": 3})


@pytest.mark.parametrize("terminal", [True, False])
async def test_all_speak_at_once_and_every_text_is_shown_whole(terminal: bool) -> None:
    out = _console(terminal)
    said = await ask_all(out, Speaker(), ["why?"])  # type: ignore[arg-type]
    for voice in VOICES:
        (line,) = said[voice.name]
        assert (line.text, line.tokens, line.ended) == (f"{voice.name} says\nwhy?", 3, True)
        assert line.seconds >= line.ttft > 0
        assert f"{voice.name} says" in _text(out)
    assert "> why?" in _text(out)


@pytest.mark.parametrize(("width", "rows"), [(30, 5), (80, 2), (160, 1)])
def test_there_are_as_many_columns_as_there_is_room_for(width: int, rows: int) -> None:
    out = Console(file=io.StringIO(), width=width)
    out.print(draw([Answer(voice.name, "text") for voice in VOICES], width))
    assert sum("╭" in line for line in _text(out).splitlines()) == rows


# --- the report ---


def _complete() -> GenerationReport:
    lines = {voice.name: [Answer(voice.name, voice.rewrite(PAIRS[0].answer), 20, 0.01, 0.2, True)] for voice in VOICES}
    return GenerationReport(answers=lines, sharing=GenerationSharing(500.0, 100.0, 15))


def test_a_report_of_what_went_well() -> None:
    report = _complete()
    report.memory = memory(_worker(100, 1000, 0), _worker(100, 1200, 50))
    report.check(voices=True)
    told = json.loads(json.dumps(report.to_json()))
    assert told["ok"]
    assert told["ratios"]["tokens_s_together_over_in_turn"] == 5.0
    assert told["memory"]["weights_copies"] == 100 * len(VOICES) + 50
    assert told["memory"]["process_copies"] == 1000 * len(VOICES)
    assert told["vfms"]["pirate"]["ttft_ms"] == pytest.approx(10.0)
    out = _console()
    report.show(out)
    assert "5.0 x more" in _text(out)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_figures_of_a_report_are_not_cut(width: int) -> None:
    report = _complete()
    report.sharing = GenerationSharing(12345.0, 1234.0, 15)
    report.memory = memory(_worker(900 << 20, 3000 << 20, 0), _worker(900 << 20, 3200 << 20, 50 << 20))
    out = Console(width=width, record=True, file=io.StringIO())
    report.show(out)
    told = out.export_text()
    assert "…" not in told
    for whole in ("one shared decoder", "one after the other", "4.8 x less", "4.7 x less", "10.0 x more", "12345 tokens/s",
                  "1234 tokens/s", "950.0 MiB", "4550.0 MiB", "3200.0 MiB", "15000.0 MiB", "15 texts of all vFMs",
                  *(voice.name for voice in VOICES)):  # fmt: skip
        assert whole in told


def test_a_text_that_did_not_come_is_a_failure() -> None:
    report = _complete()
    report.answers["poet"] = [Answer("poet", "return")]
    report.check(voices=False)
    assert report.failures == ["poet: some text did not come"]


def test_a_voice_that_cannot_be_told_is_a_failure_of_the_full_form_only() -> None:
    report = _complete()
    report.answers["pirate"][0].text = "Return number 0."
    report.check(voices=False)
    assert report.failures == []
    report.check(voices=True)
    assert report.failures == ["pirate: its voice cannot be told from what it says"]


def test_a_demo_that_failed_early_can_still_report() -> None:
    report = GenerationReport(failures=["unavailable: nobody is there [at all]"])
    out = _console()
    report.show(out)
    assert "nobody is there [at all]" in _text(out)
    assert json.loads(json.dumps(report.to_json()))["ok"] is False


def _worker(backbone: int, process: int, adapters: int) -> WorkerStats:
    residency = ResidencyStats(device_bytes=adapters)
    return WorkerStats("w", "pocket", "cpu", 1, "h", backbone_bytes=backbone, memory_bytes=process, residency=residency)


def _done(name: str, out: Path) -> FitDone:
    return FitDone(
        name=name, out=out, artifact="v", metric="accuracy", score=0.5, baseline=0.1, epochs=1, seconds=1.0
    )  # fmt: skip


def _names(plan: TrainingPlan) -> list[str]:
    return [spec.out.name for spec in (plan.decoder, *plan.loras)]


def _console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=terminal)


def _text(out: Console) -> str:
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()
