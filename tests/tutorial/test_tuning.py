"""docs/tuning.md: its programs, run as they stand against a gateway, where a hand plays the worker; and its commands against a
whole fleet."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fmplex.local import LocalFleet
from fmplex_broker.specs.fleet import TuningSpec, load_fleet
from fmplex_broker.streams import connection
from tests.support.tuning_data import CHATS, jsonl
from tests.support.tuning_office import TuningOffice, tuning_office
from tests.support.waiting import wait_until
from tests.tutorial.documents import Document, copy_fleet_file, shell, up

DOCUMENT = Document("tuning.md")
WORDS = (("you have WON a free cruise", "spam"), ("shall we meet for the report", "ham"))


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TuningOffice]:
    monkeypatch.setattr(connection, "ANSWER_S", 60.0)
    with tuning_office(tmp_path, "smol") as office:
        yield office


def run(heading: str, office: TuningOffice, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    fleet = cast(LocalFleet, SimpleNamespace(gateway_url=office.url))
    return DOCUMENT.run(heading, fleet, folder, monkeypatch)


def test_from_python(
    office: TuningOffice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        held = wait_until(office.offered, "there is a job")
        office.train(held, 50, best=50)
        office.succeed(held, "spam")

    worker = threading.Thread(target=work)
    worker.start()
    run("From Python", office, tmp_path, monkeypatch)
    worker.join()
    assert capsys.readouterr().out == "succeeded spam 0.11\n"


def test_with_the_openai_package(
    office: TuningOffice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chats.jsonl").write_bytes(jsonl(*CHATS))
    left = run("With the openai package", office, tmp_path, monkeypatch)
    left["client"].close()
    assert "Created fine-tuning job" in capsys.readouterr().out
    assert left["job"].model == "smol"


def test_the_settings_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(
        '[backbone]\nname = "b"\nmodel = "m"\n' + DOCUMENT.blocks("For operators", "toml")[0]
    )
    (backbone,) = load_fleet(tmp_path / "fleet.toml").hosted
    assert backbone.worker.tuning == TuningSpec(enabled=True)


# --- its commands -----------------------------------------------------------------------------------------------------


class Reader:
    """Somebody who types the document's commands, and puts in what was printed for the ids that it leaves out."""

    def __init__(self, fleet: LocalFleet, folder: Path) -> None:
        self._fleet, self._folder = fleet, folder
        self._ids = {"ftjob-…": "", "ftckpt-…": ""}

    def type(self, line: str) -> str:
        for left_out, known in self._ids.items():
            line = line.replace(left_out, known)
        printed = shell(line, self._fleet, self._folder)
        for prefix in ("ftjob-", "ftckpt-"):
            if found := re.findall(rf"{prefix}[0-9a-f]{{24,}}", printed):
                self._ids[f"{prefix}…"] = found[0]
        return printed

    def deploys(self, line: str) -> str | None:
        """Look for a checkpoint and type what deploys it; None if there is none, or it has been followed by two meanwhile."""
        if not json.loads(self.type("fmplex tune show ftjob-…"))["checkpoints"]:
            return None
        try:
            return self.type(line)
        except AssertionError as e:
            assert "does not keep checkpoint" in str(e)  # noqa: PT017 - any other is none of a slow reader's
            return None


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """With the fleet file that ships, and what the document puts into it."""
    folder = tmp_path_factory.mktemp("tuning")
    copy_fleet_file(folder, "minilm.toml")
    with (folder / "configs" / "minilm.toml").open("a") as config:
        config.write(DOCUMENT.blocks("A first job", "toml")[0])
    lines = [f"{words} number {n},{label}" for n in range(15) for words, label in WORDS]
    for name in ("mails.csv", "more.csv"):
        (folder / name).write_text("text,label\n" + "\n".join(lines if name == "mails.csv" else lines[::-1]) + "\n")
    with up(folder, "minilm.toml") as fleet:
        yield Reader(fleet, folder)
        assert fleet.dead() == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_first_job(reader: Reader) -> None:
    orders, looks, more = (block.splitlines() for block in DOCUMENT.blocks("A first job", "sh"))
    (order,) = orders
    assert "how it does: fmplex tune wait ftjob-" in reader.type(order)
    wait, logs, show, infer = looks
    reader.type(wait)
    assert "Held-out accuracy" in reader.type(logs)
    assert "curve.png" in reader.type(show)
    assert "label spam" in reader.type(infer)
    for line in more:
        reader.type(line)
    assert "spam-canary" in reader.type("fmplex vfms")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_pause_go_on_and_try_a_checkpoint(reader: Reader) -> None:
    (block,) = DOCUMENT.blocks("Pause, go on, try a checkpoint", "sh")
    order, pause, resume, *looks, deploy, cancel = block.splitlines()
    reader.type(order)
    assert "paused" in reader.type(pause)
    assert "queued" in reader.type(resume)
    for line in looks:
        reader.type(line)
    assert "trial serves version" in wait_until(lambda: reader.deploys(deploy), "a checkpoint is deployed")
    assert "cancelled" in reader.type(cancel)
    assert "label" in reader.type('fmplex infer trial "you have won a free cruise"')
