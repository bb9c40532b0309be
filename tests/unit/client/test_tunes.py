"""`client.tune`, `client.tunes` and `fmplex tune`, through a gateway; a hand plays the worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmplex import AsyncClient, Client, Conflict, InvalidInput, LoraSpec, UnknownTune, UnknownVfm
from fmplex.cli.app import app
from fmplex.tunes.curve import make_curve
from fmplex.tunes.records import TuneCheckpointInfo, TuneEventInfo, TuneInfo
from fmplex_broker.specs.tune_results import results_csv
from fmplex_broker.streams import connection
from tests.support.tuning_data import CHATS, LABELLED, jsonl
from tests.support.tuning_office import TuningOffice, tuning_office
from tests.support.waiting import wait_until

TUPLES = [(row["text"], row["label"]) for row in LABELLED]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TuningOffice]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    with tuning_office(tmp_path) as office:
        yield office


@pytest.fixture
def fm(office: TuningOffice) -> Iterator[Client]:
    with Client(office.url) as client:
        yield client


def checked(job: Any) -> str:
    wait_until(lambda: job.refresh().status != "validating_files", "its files have been looked through")
    return str(job.status)


# --- the SDK ----------------------------------------------------------------------------------------------------------


def test_examples_in_memory_become_a_vfm(fm: Client, office: TuningOffice) -> None:
    job = fm.tune(
        TUPLES, model="minilm", name="mine", head="classification", validation=TUPLES[:2], lora=LoraSpec(r=4), epochs=3,
        batch_size=8, learning_rate=0.01, seed=5, weight=2.0, metadata={"a": "b"}, hidden=[16],
    )  # fmt: skip
    assert checked(job) == "queued"
    held = office.take()
    spec = held.record.spec
    assert (spec.fit.head, spec.fit.lora, spec.fit.learning_rate, spec.fit.hidden) == (
        "classification", LoraSpec(r=4), 0.01, (16,),
    )  # fmt: skip
    assert (spec.hyperparameters.n_epochs, spec.hyperparameters.batch_size, spec.seed, spec.weight) == (3, 8, 5, 2.0)
    assert (spec.publish.how, spec.publish.vfm, spec.metadata) == ("as", "mine", {"a": "b"})
    assert held.record.examples == 12
    office.train(held, 10, 20, best=20)
    assert (job.refresh().progress.step, job.info.progress.share) == (20, 0.25)
    with pytest.raises(TimeoutError, match="it goes on"):
        job.wait(timeout=0.05)
    office.succeed(held, "mine")
    assert job.wait(timeout=30, progress=True).fine_tuned_model == "mine"
    steps = [event.data["step"] for event in job.events() if event.type == "metrics"]
    assert steps == [10, 20]
    assert [(one.step_number, one.best) for one in job.checkpoints()] == [(20, True), (10, False)]
    assert job.events(job.events()[-1].id) == []


def test_a_file_is_sent_once_and_its_id_is_taken(fm: Client, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in TUPLES))
    first = fm.tune(tmp_path / "a.csv", model="minilm")
    second = fm.tune(first.info.training_file, model="minilm")
    assert (checked(first), checked(second)) == ("queued", "queued")
    assert first.info.training_file == second.info.training_file
    assert [job.id for job in fm.tunes.list()] == [second.id, first.id]
    assert [job.id for job in fm.tunes.list(limit=1)] == [second.id]
    assert fm.tunes.get(first.id).info.examples == 12


def test_pause_resume_cancel(fm: Client, office: TuningOffice) -> None:
    job = fm.tune(TUPLES, model="minilm", head="classification")
    checked(job)
    assert job.pause().status == "paused"
    with pytest.raises(Conflict):
        job.pause()
    assert job.resume().status == "queued"
    assert job.cancel().status == job.cancel().status == "cancelled"
    assert job.wait().ended


def test_what_is_wrong_is_typed(fm: Client, tmp_path: Path) -> None:
    with pytest.raises(UnknownVfm) as unknown:
        fm.tune(TUPLES, model="nobody", head="classification")
    assert unknown.value.field == "model"
    with pytest.raises(InvalidInput) as head:
        fm.tune(TUPLES, model="minilm", head="features")
    assert head.value.field == "fit.head"
    with pytest.raises(InvalidInput) as option:
        fm.tune(TUPLES, model="minilm", head="classification", colour="red")
    assert option.value.field == "fit.colour"
    with pytest.raises(InvalidInput, match="cannot be read"):
        fm.tune(tmp_path / "none.jsonl", model="minilm")
    with pytest.raises(InvalidInput, match="example 1 is a int"):
        fm.tune([3], model="minilm")
    with pytest.raises(Conflict) as taken:
        fm.tune(TUPLES, model="minilm", head="classification", name="alike")
    assert taken.value.field == "suffix"
    with pytest.raises(UnknownTune):
        fm.tunes.get("ftjob-0123456789abcdef01234567")
    failed = fm.tune([*CHATS, {"messages": []}], model="minilm").wait()
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "invalid_training_file")
    with Client("redis://127.0.0.1:1") as direct, pytest.raises(InvalidInput, match="from a gateway"):
        direct.tune(TUPLES, model="minilm")


async def test_the_same_with_await(office: TuningOffice) -> None:
    async with AsyncClient(office.url) as fm:
        job = await fm.tune(CHATS, model="minilm", publish={"how": "none"})
        assert (await job.refresh()).id == job.id
        assert (await job.cancel()).status == "cancelled"
        assert (await job.wait()).status == "cancelled"
        assert [one.id for one in await fm.tunes.list()] == [job.id]
        assert (await fm.tunes.get(job.id)).status == "cancelled"
        assert (await job.events())[0].message.startswith("Created")
        assert await job.checkpoints() == []


# --- the command line -------------------------------------------------------------------------------------------------


class Shell:
    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, *args: str | Path) -> Any:
        return CliRunner().invoke(app, ["tune", *map(str, args)], env={"FMPLEX_URL": self._url})


@pytest.fixture
def tune(office: TuningOffice) -> Shell:
    return Shell(office.url)


def test_a_job_from_the_command_line(tune: Shell, office: TuningOffice, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*LABELLED))
    sent = tune(
        "submit", tmp_path / "a.jsonl", "--model", "minilm", "--as", "mine", "--lora", "r=4", "--epochs", "2", "--lr", "0.01",
        "-o", "hidden=[8]", "-o", "held_out=0.25", "-o", "batch_size=4", "--json",
    )  # fmt: skip
    assert sent.exit_code == 0, sent.output
    job = json.loads(sent.stdout)
    assert (job["status"], job["publish"]) == ("queued", {"how": "as", "vfm": "mine"})
    held = office.take()
    assert (held.record.spec.fit.hidden, held.record.spec.fit.held_out) == ((8,), 0.25)
    assert (held.record.spec.hyperparameters.n_epochs, held.record.spec.hyperparameters.batch_size) == (2, 4)
    office.train(held, 10, 20, 30, best=20)
    assert tune("pause", job["id"]).stdout.split() == [job["id"], "paused"]
    assert tune("resume", job["id"]).stdout.split()[1] in ("queued", "running")
    listed = tune("list").stdout
    assert all(part in listed for part in (job["id"], "minilm", "30/100"))
    shown = json.loads(tune("show", job["id"]).stdout)
    assert [one["step_number"] for one in shown["checkpoints"]] == [30, 20]
    logs = tune("logs", job["id"]).stdout
    assert [line for line in logs.splitlines() if "Step" in line][-1].endswith("Step 30/100: training loss 0.0333")
    assert json.loads(tune("logs", job["id"], "--json").stdout.splitlines()[0])["message"].startswith("Created")
    assert tune("cancel", job["id"]).stdout.split() == [job["id"], "cancelled"]
    assert tune("wait", job["id"]).exit_code == 1
    followed = tune("logs", job["id"], "-f").stdout
    assert "Step 30/100" in followed


def test_waiting_ends_with_what_it_made(tune: Shell, office: TuningOffice, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*CHATS))
    job = json.loads(tune("submit", tmp_path / "a.jsonl", "--model", "minilm", "--no-publish", "--json").stdout)
    office.succeed(office.take(), "made")
    done = tune("wait", job["id"], "--json")
    assert (done.exit_code, json.loads(done.stdout)["fine_tuned_model"]) == (0, "made")
    assert "serves as made" in done.stderr


def test_why_it_failed_is_raised(tune: Shell, office: TuningOffice, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*CHATS, "{"))
    bad = tune("submit", tmp_path / "a.jsonl", "--model", "minilm")
    assert isinstance(bad.exception, InvalidInput)
    assert "line 7: not JSON" in bad.exception.message
    (tmp_path / "a.jsonl").write_bytes(jsonl(*CHATS))
    job = json.loads(tune("submit", tmp_path / "a.jsonl", "--model", "minilm", "--json").stdout)
    office.fail(office.take(), "non_finite", "diverged three times")
    assert "diverged three times" in str(tune("wait", job["id"]).exception)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (["--as", "a", "--update", "b"], "publish"), (["--as", "a", "--no-publish"], "publish"),
        (["--generation", "1"], "generation"), (["-o", "seed=1"], "option"), (["-o", "hidden"], "params"),
        (["--lora", "r"], "lora"),
    ],
)  # fmt: skip
def test_options_that_say_nothing_clear(tune: Shell, args: list[str], field: str) -> None:
    done = tune("submit", "a.jsonl", "--model", "minilm", *args)
    assert isinstance(done.exception, InvalidInput)
    assert done.exception.field == field


# --- the curve --------------------------------------------------------------------------------------------------------


def event(step: int, **data: Any) -> TuneEventInfo:
    return TuneEventInfo(
        id=f"e{step}", created_at=0, level="info", message="", type="metrics", data={"step": step, **data}
    )


INFO = TuneInfo(
    id="ftjob-1", status="running", model="minilm", created_at=0, training_file="f", publish={"vfm": "mine"}
)


def test_a_curve_is_what_was_told() -> None:
    checkpoints = [TuneCheckpointInfo(id="c", created_at=0, step_number=2, best=True)]
    told = [
        event(2, train_loss=0.5, valid_loss=0.6), event(1, train_loss=1.0), event(3, train_loss=None, valid_score=0.9),
        event(4, train_loss=float("nan")), TuneEventInfo(id="m", created_at=0, level="info", message="Step 5"),
    ]  # fmt: skip
    curve = make_curve(INFO, told, checkpoints)
    assert [(line.name, line.steps, line.values) for line in curve.losses] == [
        ("training loss", [1, 2], [1.0, 0.5]), ("validation loss", [2], [0.6]),
    ]  # fmt: skip
    assert [(line.name, line.steps) for line in curve.scores] == [("validation score", [3])]
    assert (curve.best, curve.title) == (2, "mine (ftjob-1, running)")
    with pytest.raises(InvalidInput, match="has told no loss yet") as e:
        make_curve(INFO, told[-1:], [])
    assert e.value.field == "plot"


def test_the_curve_is_drawn_twice(tune: Shell, office: TuningOffice, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    (tmp_path / "a.jsonl").write_bytes(jsonl(*CHATS))
    job = json.loads(tune("submit", tmp_path / "a.jsonl", "--model", "minilm", "--json").stdout)
    office.train(office.take(), 10, 20, best=10)
    drawn = tune("show", job["id"], "--plot", tmp_path / "curve.png")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "curve.html").read_text()
    assert all(words in page for words in ("training loss", "validation loss", "best: step 10", job["id"]))
    nowhere = tune("show", job["id"], "--plot", tmp_path / "none" / "curve")
    assert isinstance(nowhere.exception, InvalidInput)


def test_figures_as_a_table() -> None:
    figures = [
        {"step": 2, "train_loss": 0.5},
        {"step": 1, "train_loss": 1.0, "tokens": 7},
        {"step": 2, "valid_loss": 0.6},
        {},
    ]
    assert results_csv(figures).decode().splitlines() == [
        "step,train_loss,valid_loss,valid_score,tokens,tokens_s,share", "1,1.0,,,7,,", "2,0.5,0.6,,,,",
    ]  # fmt: skip
