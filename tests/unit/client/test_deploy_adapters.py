"""`fmplex deploy` of a folder that PEFT has saved: backbone and head are those it was trained with, or an option is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from fmplex.cli import deploy as command
from fmplex.cli.app import app
from fmplex.running import announce, withdraw
from fmplex_broker.errors import Conflict, FmplexError, InvalidInput, PackageRejected
from fmplex_broker.packages.archive import open_package
from fmplex_broker.packages.package import Package
from tests.support.fleets import write_fleet
from tests.support.tiny import save_model

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT and a Llama, and adapters of them as PEFT saves them."""
    place = tmp_path_factory.mktemp("models")
    for family in ("bert", "llama"):
        save_model(family, place / family)
    config = AutoConfig.from_pretrained(place / "bert", num_labels=3)
    classes = AutoModelForSequenceClassification.from_pretrained(place / "bert", config=config)
    _save(classes, place / "classes", task_type="SEQ_CLS")
    _save(AutoModel.from_pretrained(place / "bert"), place / "vectors", task_type="FEATURE_EXTRACTION")
    _save(AutoModel.from_pretrained(place / "bert"), place / "untold", auto_mapping=True)
    chat = AutoModelForCausalLM.from_pretrained(place / "llama")
    _save(chat, place / "chat", task_type="CAUSAL_LM")
    return place


def _save(model: Any, folder: Path, *, auto_mapping: bool = False, **options: Any) -> None:
    torch.manual_seed(0)
    targets = ["query", "value"] if "Bert" in type(model).__name__ else ["q_proj", "v_proj"]
    wrapped: PeftModel = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **options))
    wrapped.save_pretrained(folder)
    if auto_mapping:
        assert (
            json.loads((folder / "adapter_config.json").read_text())["auto_mapping"]["base_model_class"] == "BertModel"
        )


@pytest.fixture
def fleet(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMPLEX_URL", "http://127.0.0.1:1")
    return write_fleet(
        tmp_path / "configs" / "minilm.toml",
        {"name": "small", "model": str(models / "bert")}, {"name": "talks", "model": str(models / "llama")},
    )  # fmt: skip


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Package]]:
    """What is deployed, and how; a vFM of the name `there` is there already."""
    calls: list[tuple[str, Package]] = []

    def deploy(path: Path) -> Any:
        package = open_package(path)
        if package.spec.name == "there":
            raise Conflict("there is already a vFM 'there'; …")
        calls.append(("deploy", package))
        return SimpleNamespace(name=package.spec.name, version="v1", backbone=package.spec.backbone)

    def update(name: str, path: Path) -> Any:
        calls.append(("update", open_package(path)))
        return SimpleNamespace(name=name, version="v2", backbone="b")

    @contextmanager
    def client(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(vfms=SimpleNamespace(deploy=deploy, update=update))

    monkeypatch.setattr(command, "open_client", client)
    return calls


def run(*args: object) -> str:
    done = CliRunner().invoke(app, ["deploy", *map(str, args)])
    if isinstance(done.exception, FmplexError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


Deployed = list[tuple[str, Package]]


@pytest.mark.parametrize(
    ("adapter", "more", "backbone", "kind"),
    [
        ("classes", ["--labels", "low, middle,high"], "small", "classification"),
        ("classes", ["--labels", "a,b,c", "--backbone", "elsewhere"], "elsewhere", "classification"),
        ("vectors", [], "small", "embedding"),
        ("vectors", ["--head", "features"], "small", "features"),
        ("untold", [], "small", "embedding"),
        ("chat", [], "talks", "generation"),
    ],
)
def test_an_adapter_is_taken_as_it_is(
    fleet: Path, deployed: Deployed, models: Path, adapter: str, more: list[str], backbone: str, kind: str
) -> None:
    assert f"mine serves version v1 on {backbone}" in run(models / adapter, "--name", "mine", *more)
    [(_, package)] = deployed
    assert package.spec.head is not None
    assert (package.spec.name, package.spec.backbone, package.spec.head.kind) == ("mine", backbone, kind)
    if kind == "classification":
        assert package.spec.head.model_dump()["labels"] == tuple(label.strip() for label in more[1].split(","))


def test_the_fleet_that_runs_here_says_what_its_backbones_are(
    fleet: Path, deployed: Deployed, models: Path, tmp_path: Path
) -> None:
    other = write_fleet(tmp_path / "other.toml", {"name": "named-otherwise", "model": str(models / "bert")})
    run(models / "vectors", "--name", "a", "--config", other)
    assert announce("http://127.0.0.1:1", "redis://127.0.0.1:1", "x", str(other))
    run(models / "vectors", "--name", "b")
    withdraw()
    run(models / "vectors", "--name", "there", "--update")
    assert [(how, p.spec.backbone) for how, p in deployed] == [
        ("deploy", "named-otherwise"), ("deploy", "named-otherwise"), ("update", "small"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("adapter", "args", "error"),
    [
        ("vectors", [], "give --name, what the vFM is to be called"),
        ("vectors", ["--name", "no name"], "name: "),
        ("vectors", ["--name", "there"], "--update makes this its new version"),
        ("vectors", ["--name", "a", "--labels", "x,y"], "--labels is for an adapter that holds a classifier"),
        ("vectors", ["--name", "a", "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        ("classes", ["--name", "a"], "3 outputs and 0 labels are known; give --labels in their order"),
        ("classes", ["--name", "a", "--labels", "x,y"], "3 outputs and 2 labels are known; give --labels"),
        (
            "classes",
            ["--name", "a", "--labels", "x,y,z", "--backbone", "small", "--model", "none"],
            "none is not a folder",
        ),
        ("bert", ["--name", "a"], "--name is for adapters that PEFT has saved"),
        ("bert", [], "has no vfm.toml"),
    ],
)
def test_what_is_missing_is_named(
    fleet: Path, deployed: Deployed, models: Path, adapter: str, args: list[str], error: str
) -> None:
    with pytest.raises((InvalidInput, PackageRejected, Conflict), match=error):
        run(models / adapter, *args)
    assert deployed == []


def _changed(adapter: Path, folder: Path, **options: Any) -> Path:
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    return folder


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"base_model_name_or_path": None}, "does not say what it was trained on; give --backbone"),
        ({"base_model_name_or_path": "org/other"}, r"'org/other', .*is no backbone of .*: small \(.*; give --backbone"),
        ({"task_type": "QUESTION_ANS"}, "trained as QUESTION_ANS, from which no head follows; give --head"),
        ({"task_type": None}, "trained as nothing that it says, from which no head follows; give --head"),
        ({"task_type": "SEQ_CLS"}, "trained as SEQ_CLS but holds no classifier; give --head"),
    ],
)
def test_an_adapter_that_does_not_say_is_asked_about(
    fleet: Path, deployed: Deployed, models: Path, tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    folder = _changed(models / "vectors", tmp_path / "adapter", **options)
    with pytest.raises(InvalidInput, match=error):
        run(folder, "--name", "a")
    run(folder, "--name", "a", "--backbone", "small", "--head", "embedding")
    assert len(deployed) == 1


def test_without_a_fleet_file_or_with_two_like_backbones_one_is_asked_for(
    fleet: Path, deployed: Deployed, models: Path
) -> None:
    model = str(models / "bert")
    two = write_fleet(fleet.with_name("two.toml"), {"name": "one", "model": model}, {"name": "two", "model": model})
    with pytest.raises(InvalidInput, match=r"is more than one backbone of .*: one \(.*two \(.*; give --backbone"):
        run(models / "vectors", "--name", "a", "--config", two)
    fleet.unlink()
    with pytest.raises(InvalidInput, match="Give --backbone, its name, or --config"):
        run(models / "vectors", "--name", "a")
