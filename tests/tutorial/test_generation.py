"""docs/generation.md: its code blocks, run in their order as they stand, on a tiny model in place of the reader's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex import Client, Slo
from fmplex.local import LocalFleet
from fmplex_broker.specs.versions import artifact_of
from tests.support.decoders import save_model
from tests.tutorial.documents import Document, copy_fleet_file, shell, up

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore")

DOCUMENT = Document("generation.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a checkout with the fleet file that ships, and a model where it says."""
    folder = tmp_path_factory.mktemp("generation")
    copy_fleet_file(folder, "generation.toml")
    save_model(folder / "configs" / "model")
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    with up(folder, "generation.toml") as running:
        yield running


def test_the_bare_backbone_talks(fleet: LocalFleet, folder: Path) -> None:
    _, talk = DOCUMENT.blocks("Start a fleet", "sh")[0].splitlines()
    assert shell(talk, fleet, folder).strip()


def test_a_lora_is_deployed_called_and_streamed(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = DOCUMENT.run("Deploy a LoRA", fleet, folder, monkeypatch)["built"]
    with Client(fleet.gateway_url) as fm:
        shown = fm.vfms.show("acme")
    assert (artifact_of(shown.version), shown.head.system) == (built.artifact, "You answer for Acme, in one sentence.")
    left = DOCUMENT.run("Call it", fleet, folder, monkeypatch)
    assert left["answer"].usage.completion_tokens <= 60
    assert left["output"]["text"] in capsys.readouterr().out
    assert left["pieces"].result.output["finish_reason"] in ("stop", "length")
    assert shell(DOCUMENT.blocks("Call it", "sh")[0], fleet, folder).rstrip().endswith("data: [DONE]")


def test_a_schema_is_kept(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = DOCUMENT.run("Say how", fleet, folder, monkeypatch)["answer"]
    assert json.loads(answer.choices[0].message.content)["topic"] in ("parcel", "invoice", "other")


def test_targets_are_set(fleet: LocalFleet, folder: Path) -> None:
    for line in DOCUMENT.blocks("Say how fast", "sh")[0].splitlines():
        shell(line, fleet, folder)
    with Client(fleet.gateway_url) as fm:
        shown = fm.vfms.show("acme")
    assert shown.weight == 2
    assert shown.slo == Slo(ttft_ms=500, inter_token_ms=80, deadline_ms=300_000)
