"""docs/tuning.md: its programs, run as they stand against a gateway; a hand plays the worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fmplex.local import LocalFleet
from fmplex_broker.streams import connection
from tests.support.tuning_data import CHATS, jsonl
from tests.support.tuning_office import TuningOffice, tuning_office
from tests.support.waiting import wait_until
from tests.tutorial.documents import Document

DOCUMENT = Document("tuning.md")


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
