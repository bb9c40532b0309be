"""docs/batches.md: its commands and programs, run as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.support.packages import write_package
from tests.tutorial.documents import Document, shell

DOCUMENT = Document("batches.md")


@pytest.fixture(scope="module", autouse=True)
def vfms(fleet: LocalFleet, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The vFMs that the document speaks of."""
    head = {"kind": "classification", "labels": ("ham", "spam")}
    with Client(fleet.gateway_url) as fm:
        fm.vfms.deploy(write_package(tmp_path_factory.mktemp("vfms") / "spam", head, name="spam"))
        fm.vfms.deploy({"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}})


def test_a_first_batch(fleet: LocalFleet, folder: Path) -> None:
    (folder / "mails.txt").write_text("you have WON a free cruise\n\nshall we meet at noon?\n")
    sends, waits = (block.strip() for block in DOCUMENT.blocks("A first batch", "sh"))
    (sent,) = re.findall(r"batch_\w+(?= )", shell(sends, fleet, folder).partition(";")[0])
    assert "2 of 2 lines answered, in results.jsonl" in shell(waits, fleet, folder)
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(result["line"], result["output"]["label"] in ("ham", "spam")) for result in results] == [
        (1, True),
        (3, True),
    ]
    assert sent in shell("fmplex batches list", fleet, folder)
    fetched = shell(f"fmplex batches fetch {sent} --wait", fleet, folder)
    assert [json.loads(line)["output"] for line in fetched.splitlines()] == [result["output"] for result in results]


def test_from_python(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    DOCUMENT.run("From Python", fleet, folder, monkeypatch)
    batch, *results, job = capsys.readouterr().out.splitlines()
    assert batch.startswith("batch_")
    assert [bool(re.search(" (ham|spam)$", line)) for line in results] == [True] * 3
    assert job in ("ham", "spam")


def test_with_the_openai_package(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = DOCUMENT.run("With the openai package", fleet, folder, monkeypatch)
    left["client"].close()
    assert capsys.readouterr().out == "['mail-0', 'mail-1']\n"
    assert (left["batch"].status, left["batch"].error_file_id) == ("completed", None)
    with Client(fleet.gateway_url) as fm:
        wanted = fm.embed("embed", ["one text", "another"])
    assert [left["vectors"][f"mail-{n}"] for n in range(2)] == [pytest.approx(vector, abs=1e-5) for vector in wanted]
