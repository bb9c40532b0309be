"""docs/generation.md: its code blocks, run in their order as they stand, on a tiny model in place of the reader's."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.integration.decoders import save_model
from tests.tutorial.conftest import REPO

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore")

_DEFAULT = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a checkout with the fleet file that ships, and a model where it says."""
    folder = tmp_path_factory.mktemp("generation")
    (folder / "configs").mkdir()
    shipped = (REPO / "configs" / "generation.toml").read_text()
    config = re.sub(r"(?m)^port = \d+", "port = 0", shipped)
    (folder / "configs" / "generation.toml").write_text(f'artifacts = "{folder}/artifacts"\n{config}')
    save_model(folder / "configs" / "model")
    return folder


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[LocalFleet]:
    with LocalFleet(folder / "configs" / "generation.toml", port=0, data=folder / "data") as running:
        with Client(running.gateway_url) as fm:
            for spec in running.spec.vfms:
                fm.vfms.deploy(spec)
        yield running


def blocks(heading: str, language: str = "python") -> list[str]:
    """The code blocks below a heading."""
    text = (REPO / "docs" / "generation.md").read_text()
    section = re.split(r"(?m)^## ", text.partition(f"## {heading}\n")[2])[0]
    found = re.findall(rf"(?ms)^```{language}\n(.*?)^```", section)
    assert found, f"docs/generation.md has no {language} below {heading!r}"
    return found


def run(heading: str, fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run a section's Python from the checkout, against this fleet; the names it leaves."""
    monkeypatch.chdir(folder)
    scope: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(heading):
        exec(compile(block.replace(_DEFAULT, fleet.gateway_url), "docs/generation.md", "exec"), scope)
    return scope


def shell(line: str, fleet: LocalFleet, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(line.replace(_DEFAULT, fleet.gateway_url)), cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "FMPLEX_URL": fleet.gateway_url},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_bare_backbone_talks(fleet: LocalFleet, folder: Path) -> None:
    _, talk = blocks("Start a fleet", "sh")[0].splitlines()
    assert shell(talk, fleet, folder).strip()


def test_a_lora_is_deployed_called_and_streamed(
    fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = run("Deploy a LoRA", fleet, folder, monkeypatch)["built"]
    with Client(fleet.gateway_url) as fm:
        shown = fm.vfms.show("acme")
    assert (shown["version"], shown["head"]["system"]) == (built.version, "You answer for Acme, in one sentence.")
    left = run("Call it", fleet, folder, monkeypatch)
    assert left["answer"].usage.completion_tokens <= 60
    assert left["output"]["text"] in capsys.readouterr().out
    assert left["pieces"].result.output["finish_reason"] in ("stop", "length")
    assert shell(blocks("Call it", "sh")[0], fleet, folder).rstrip().endswith("data: [DONE]")


def test_a_schema_is_kept(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run("Say how", fleet, folder, monkeypatch)["answer"]
    assert json.loads(answer.choices[0].message.content)["topic"] in ("parcel", "invoice", "other")


def test_targets_are_set(fleet: LocalFleet, folder: Path) -> None:
    for line in blocks("Say how fast", "sh")[0].splitlines():
        shell(line, fleet, folder)
    with Client(fleet.gateway_url) as fm:
        shown = fm.vfms.show("acme")
    assert shown["weight"] == 2
    assert shown["slo"] == {"latency_ms": None, "ttft_ms": 500, "inter_token_ms": 80, "deadline_ms": 300_000}
