"""A whole small fleet trains, beside what it serves: what was ordered on the command line answers through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from tests.integration.shell import Shell
from tests.support.fleets import write_minilm_fleet

LINES = [
    {"text": f"{words} number {n}", "label": label}
    for n in range(15)
    for words, label in (("you have won a free cruise", "spam"), ("shall we meet for the report", "ham"))
]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    config = write_minilm_fleet(folder, worker={"tuning": {"enabled": True}})
    with LocalFleet(config, port=0, data=folder / "data") as running:
        yield Shell(folder, running.gateway_url)
        assert running.dead() == []


@pytest.mark.parametrize("adapter", [(), ("--lora", "r=2", "--epochs", "1")], ids=["head", "lora"])
def test_what_is_submitted_becomes_a_vfm_that_answers(shell: Shell, adapter: tuple[str, ...]) -> None:
    name = f"spam-{len(adapter)}"
    done = shell.run("tune", "submit", "mails.jsonl", "--model", "minilm", "--as", name, *adapter, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["status"], job["fine_tuned_model"]) == ("succeeded", name)
    assert job["result_files"]
    with Client(shell.environment["FMPLEX_URL"]) as client:
        assert client.infer(name, "you have won a free cruise number 99").output["label"] == "spam"
        assert client.vfms.show(name).version == job["version"]


def test_a_vfm_is_gone_on_with(shell: Shell, tmp_path: Path) -> None:
    args = ("tune", "submit", "mails.jsonl", "--epochs", "1", "--wait", "--json")
    first = json.loads(shell.run(*args, "--model", "minilm", "--as", "mails", "--lora", "r=2").stdout)
    second = json.loads(shell.run(*args, "--model", "mails", "--seed", "1").stdout)
    assert (second["status"], second["fine_tuned_model"]) == ("succeeded", "mails")
    assert second["version"] != first["version"]
