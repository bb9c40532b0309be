"""PEFT adapters become packages: copied as they are, and classifiers saved in them give the logits that PEFT gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

import fmplex
from fmplex_broker.errors import FmplexError, InvalidInput, PackageRejected
from fmplex_broker.packages.package import read_package
from fmplex_broker.packages.peft_lora import LORA_TENSOR
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.engine.opening import open_engine
from tests.support.tiny import CONFIGS, run, save_adapter, save_model
from tests.support.tiny import lora as lora_tensors
from tests.unit.client.heads import logits, spec_of

# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore")

LABELS = ("low", "middle", "high")
IDS = torch.tensor([[3, 7, 8, 9, 4], [3, 11, 5, 6, 4]])  # no padding, so that nothing hides which token is read
TARGETS = {
    "distilbert": ["q_lin", "v_lin"],
    "mpnet": ["attn.q", "attn.v"],
    "llama": ["q_proj", "v_proj"],
    "qwen3": ["q_proj", "v_proj"],
    "modernbert": ["Wqkv"],
    "deberta-v2": ["query_proj", "value_proj"],
    "gemma2": ["q_proj", "v_proj"],
    "phi3": ["qkv_proj"],
}
Trained = tuple[PeftModel, Path, Path]


def trained(folder: Path, family: str, task: str = "SEQ_CLS", labels: int = 3, **config: Any) -> Trained:
    """A base model and an adapter of it with random weights, saved as their libraries save them: (model, adapter, base)."""
    torch.manual_seed(0)
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForTokenClassification
    pooling = {"classifier_pooling": config.pop("pool", "cls")} if family == "modernbert" else {}
    save_model(family, folder / "base", **pooling)
    made = AutoConfig.from_pretrained(folder / "base", num_labels=labels)
    model = auto.from_pretrained(folder / "base", config=made)
    targets = config.pop("target_modules", TARGETS.get(family, ["query", "value"]))
    kind = config.pop("kind", LoraConfig)
    ranks = {"r": 3, "lora_alpha": 7} if kind is LoraConfig else {}
    wrapped = get_peft_model(model, kind(task_type=task, target_modules=targets, **ranks, **config))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
            assert parameter.requires_grad == any(part in name for part in ("lora", "ia3", "modules_to_save"))
    wrapped.save_pretrained(folder / "adapter")
    return wrapped.eval(), folder / "adapter", folder / "base"


@torch.no_grad()
def states_and_logits(model: PeftModel) -> tuple[Any, Any]:
    out = model(input_ids=IDS, output_hidden_states=True)
    return out.hidden_states[-1].double().numpy(), out.logits.double().numpy()


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=3e-5, rtol=1e-4)


def lora_only(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in load_file(path / "adapter_model.safetensors").items() if LORA_TENSOR.fullmatch(k)}


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- sequence classification -----------------------------------------------------------------------------------------

# family: needs the base model, pooling, activation of the layer before the last (None: no such layer)
FAMILIES: dict[str, tuple[bool, str, str | None]] = {
    "bert": (True, "cls", "tanh"),
    "roberta": (False, "cls", "tanh"),
    "xlm-roberta": (False, "cls", "tanh"),
    "camembert": (False, "cls", "tanh"),
    "electra": (False, "cls", "gelu"),
    "mpnet": (False, "cls", "tanh"),
    "distilbert": (True, "cls", "relu"),
    "albert": (True, "cls", "tanh"),
    "deberta-v2": (False, "cls", "gelu"),
    "modernbert": (True, "cls", "gelu"),
    "gemma2": (False, "last", None),
    "phi3": (False, "last", None),
    "llama": (False, "last", None),
    "qwen3": (False, "last", None),
}


# Layers of classifiers that PEFT saves only if it is told to.
SAVED = {
    "distilbert": {"modules_to_save": ["pre_classifier"]},
    "deberta-v2": {"modules_to_save": ["pooler"]},
    "modernbert": {"modules_to_save": ["head"]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_give_the_logits_of_peft(tmp_path: Path, family: str) -> None:
    needs_base, pooling, activation = FAMILIES[family]
    model, adapter, base = trained(tmp_path, family, **SAVED.get(family, {}))
    if FAMILIES[family][1] == "last":
        model.config.pad_token_id = model.base_model.model.config.pad_token_id = 0
    built = fmplex.from_peft(
        adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p", model=str(base) if needs_base else None
    )
    states, theirs = states_and_logits(model)
    close(logits(built.out, states[:, 0 if pooling == "cls" else -1]), theirs)
    head = spec_of(built.out)["head"]
    assert (head["kind"], head["labels"], head["pooling"]) == ("classification", list(LABELS), pooling)
    assert head.get("activation", "relu" if head.get("hidden") else None) == activation
    assert same(load_file(built.out / "adapter" / "adapter_model.safetensors"), lora_only(adapter))
    config = json.loads((built.out / "adapter" / "adapter_config.json").read_text())
    said = json.loads((adapter / "adapter_config.json").read_text())
    assert config == said | {"modules_to_save": None}
    assert read_package(built.out).digest == built.artifact


def test_modernbert_pools_as_its_config_says_and_takes_its_head_from_the_base_model(tmp_path: Path) -> None:
    """As on the hub: the checkpoint has the head of its pre-training, which LoRA changes (`all-linear`)."""
    targets = ["Wqkv", "head.dense"]
    model, adapter, base = trained(tmp_path, "modernbert", pool="mean", target_modules=targets)
    head = model.base_model.model.head
    weights = load_file(base / "model.safetensors")
    more = {"head.dense.weight": head.dense.base_layer.weight.detach(), "head.norm.weight": head.norm.weight.detach()}
    save_file({**weights, **more}, base / "model.safetensors", {"format": "pt"})
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, model=str(base), out=tmp_path / "p")
    states, theirs = states_and_logits(model)
    close(logits(built.out, states.mean(1)), theirs)
    assert spec_of(built.out)["head"]["pooling"] == "mean"


def test_the_adapter_says_which_base_model_it_had(tmp_path: Path) -> None:
    """A folder of this machine is found by itself."""
    _, adapter, base = trained(tmp_path, "bert")
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p")


def test_lora_on_the_pooler_is_merged_into_the_head(tmp_path: Path) -> None:
    """target_modules='all-linear' reaches it; shared passes never run it."""
    model, adapter, base = trained(tmp_path, "bert", target_modules="all-linear", use_rslora=True)
    assert any("pooler.dense.lora_A" in key for key in lora_only(adapter))
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, model=str(base), out=tmp_path / "p")
    states, theirs = states_and_logits(model)
    close(logits(built.out, states[:, 0]), theirs)
    assert not any("pooler" in key for key in load_file(built.out / "adapter" / "adapter_model.safetensors"))


def test_a_pooler_that_was_trained_is_taken_from_the_adapter(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path, "bert", modules_to_save=["pooler"])
    (tmp_path / "base").rename(tmp_path / "gone")
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p")
    states, theirs = states_and_logits(model)
    close(logits(built.out, states[:, 0]), theirs)


def test_ia3(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path, "roberta", kind=IA3Config, feedforward_modules=["value"])
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p")
    states, theirs = states_and_logits(model)
    close(logits(built.out, states[:, 0]), theirs)
    kept = load_file(built.out / "adapter" / "adapter_model.safetensors")
    assert len(kept) == 4
    assert all("ia3_l" in key for key in kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_served_scores_are_those_of_peft(tmp_path: Path, family: str) -> None:
    """From PEFT's files to the engine's answers, adapter and classifier together."""
    model, adapter, base = trained(tmp_path, family, **SAVED.get(family, {}))
    if FAMILIES[family][1] == "last":
        model.config.pad_token_id = model.base_model.model.config.pad_token_id = 0
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p", model=str(base))
    engine = open_engine(BackboneSpec(name="m", model=str(base)), WorkerSpec(device="cpu"))
    engine.load(engine.fit(read_package(built.out)))
    got = run(engine, *((built.artifact, {"input_ids": ids}) for ids in IDS.tolist()))
    theirs = torch.tensor(states_and_logits(model)[1]).softmax(1).numpy()
    np.testing.assert_allclose([[one["scores"][label] for label in LABELS] for one in got], theirs, atol=1e-4)


def test_half_precision(tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, adapter, _ = trained(tmp_path / str(dtype), "roberta")
        path = adapter / "adapter_model.safetensors"
        save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
        built = fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / f"{dtype}-p")
        kept = load_file(built.out / "adapter" / "adapter_model.safetensors")
        assert same(kept, lora_only(adapter))
        assert {tensor.dtype for tensor in kept.values()} == {dtype}
        states, theirs = states_and_logits(model)
        np.testing.assert_allclose(logits(built.out, states[:, 0]), theirs, atol=0.2)


def test_one_output_is_a_regression_or_what_the_caller_says(tmp_path: Path) -> None:
    model, adapter, _ = trained(tmp_path, "roberta", labels=1)
    built = fmplex.from_peft(adapter, name="v", backbone="m", out=tmp_path / "p")
    ranking = fmplex.from_peft(adapter, name="v", backbone="m", head={"kind": "ranking"}, out=tmp_path / "q")
    assert (spec_of(built.out)["head"]["kind"], spec_of(ranking.out)["head"]["kind"]) == ("regression", "ranking")
    states, theirs = states_and_logits(model)
    close(logits(built.out, states[:, 0]), theirs)
    close(logits(ranking.out, states[:, 0]), theirs)


def test_labels_come_from_the_base_models_config(tmp_path: Path) -> None:
    _, adapter, base = trained(tmp_path, "bert")
    path = base / "config.json"
    said = {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"}
    path.write_text(json.dumps(json.loads(path.read_text()) | said))
    head = spec_of(fmplex.from_peft(adapter, name="v", backbone="m", model=str(base), out=tmp_path / "p").out)["head"]
    assert (head["labels"], head["multi_label"]) == (list(LABELS), True)


# --- token classification --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "modernbert", "llama"])
@pytest.mark.parametrize("outside", [0, 1, 2])
def test_token_classifiers_give_the_logits_of_peft(tmp_path: Path, family: str, outside: int) -> None:
    saved = SAVED["modernbert"] if family == "modernbert" else {}
    model, adapter, base = trained(tmp_path, family, "TOKEN_CLS", **saved)
    labels = ["person", "place"]
    labels.insert(outside, "O")
    built = fmplex.from_peft(adapter, name="v", backbone="m", labels=labels, model=str(base), out=tmp_path / "p")
    states, theirs = states_and_logits(model)
    order = [labels.index(label) for label in ("O", "person", "place")]
    close(logits(built.out, states.reshape(-1, states.shape[-1])), theirs.reshape(-1, 3)[:, order])
    between = {"hidden": [32], "activation": "gelu", "norm": True} if family == "modernbert" else {}
    assert spec_of(built.out)["head"] == {"kind": "tagging", "labels": ["person", "place"], **between}


def test_token_classification_needs_an_outside(tmp_path: Path) -> None:
    _, adapter, _ = trained(tmp_path, "bert", "TOKEN_CLS")
    with pytest.raises(InvalidInput, match="outside"):
        fmplex.from_peft(adapter, name="v", backbone="m", labels=LABELS, out=tmp_path / "p")


# --- without a classifier --------------------------------------------------------------------------------------------


def plain(folder: Path, **config: Any) -> Path:
    return save_adapter(folder, lora_tensors("encoder.layer.0.attention.self.query"), **config)


def test_an_adapter_without_a_classifier_is_copied_as_it_is(tmp_path: Path) -> None:
    adapter = plain(tmp_path / "a", task_type="FEATURE_EXTRACTION")
    built = fmplex.from_peft(adapter, name="v", backbone="m", out=tmp_path / "p", input={"template": "query: {text}"})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (built.out / "adapter" / name).read_bytes() == (adapter / name).read_bytes()
    said = spec_of(built.out)
    assert said["head"]["kind"] == "embedding"
    assert said["input"] == {"template": "query: {text}"}


def test_an_adapter_with_a_head_of_the_callers_own(tmp_path: Path) -> None:
    head = {"kind": "classification", "labels": ["no", "yes"], "pooling": "cls"}
    weights = {"weight": torch.ones(2, 32), "bias": [0.0, 1.0]}
    built = fmplex.from_peft(
        plain(tmp_path / "a"), name="v", backbone="m", head=head, weights=weights, out=tmp_path / "p"
    )
    close(logits(built.out, np.eye(32)[:3]), [[1, 2]] * 3)


# --- what is refused -------------------------------------------------------------------------------------------------


def _pickled(folder: Path) -> Path:
    plain(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    return folder


def _with(folder: Path, key: str, **config: Any) -> Path:
    query = lora_tensors("bert.encoder.layer.0.attention.self.query")
    extra = {f"base_model.model.{key}": torch.ones(3, 32)}
    return save_adapter(folder, query | extra, modules_to_save=["x"], **config)


def _prompted(folder: Path) -> Path:
    save_model("roberta", folder / "base")
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base", num_labels=3)
    get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)).save_pretrained(folder / "a")
    return folder / "a"


def _modernbert(folder: Path) -> Path:
    _, adapter, base = trained(folder, "modernbert")
    base.rename(folder / "gone")
    return adapter


def _bert_alone(folder: Path) -> Path:
    _, adapter, base = trained(folder, "bert")
    base.rename(folder / "gone")
    return adapter


REFUSED: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str]] = {
    "nothing": (lambda f: f / "nowhere", {}, "cannot be read.*check the path"),
    "pickle": (_pickled, {}, "save_pretrained"),
    "dora": (lambda f: plain(f, use_dora=True), {}, "DoRA"),
    "no lora": (lambda f: plain(f, peft_type="VERA"), {}, "VERA"),
    "whole embeddings": (lambda f: _with(f, "embeddings.word.weight"), {}, "modules_to_save"),
    "soft prompt with a classifier": (_prompted, {"labels": LABELS}, "whole weight|modules_to_save"),
    "causal head": (lambda f: _with(f, "lm_head.weight", task_type="CAUSAL_LM"), {}, "CAUSAL_LM.*modules_to_save"),
    "unknown classifier": (_modernbert, {"labels": LABELS}, r"not known.*modernbert \(give model="),
    "no pooler": (_bert_alone, {"labels": LABELS}, r"bert\.pooler\.dense.*model="),
    "labels": (lambda f: trained(f, "roberta")[1], {}, "3 outputs and 0 labels"),
    "too many labels": (lambda f: trained(f, "roberta")[1], {"labels": "abcd"}, "3 outputs and 4 labels"),
    "pooling": (
        lambda f: trained(f, "roberta")[1], {"labels": LABELS, "head": {"pooling": "mean"}}, r"head\.pooling.*cls",
    ),
    "two heads": (lambda f: trained(f, "roberta")[1], {"labels": LABELS, "weights": {"weight": [[1.0]]}}, "already"),
    "no base": (lambda f: trained(f, "bert")[1], {"labels": LABELS, "model": "org/name"}, "not a folder"),
    "more than the classifier": (
        lambda f: trained(f, "roberta", modules_to_save=["word_embeddings"])[1], {"labels": LABELS}, "word_embeddings",
    ),
    "head without weights": (lambda f: plain(f), {"head": {"kind": "regression"}}, "needs head.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served_is_named(tmp_path: Path, case: str) -> None:
    make, more, what = REFUSED[case]
    adapter = make(tmp_path / "a")
    with pytest.raises((PackageRejected, InvalidInput), match=what) as caught:
        fmplex.from_peft(adapter, name="v", backbone="m", out=tmp_path / "p", **more)
    assert caught.value.field
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("config", [b"", b"[]", b"null", b"{}", b"\xff", b'{"peft_type": 3}'])
def test_broken_configs(tmp_path: Path, config: bytes) -> None:
    adapter = plain(tmp_path / "a")
    (adapter / "adapter_config.json").write_bytes(config)
    with pytest.raises(FmplexError, match="adapter_config"):
        fmplex.from_peft(adapter, name="v", backbone="m", out=tmp_path / "p")


def test_families_are_ours() -> None:
    assert set(FAMILIES) <= set(CONFIGS)


# --- what the adapter's own config says ------------------------------------------------------------------------------


def beside(adapter: Path, **config: Any) -> None:
    (adapter / "config.json").write_text(json.dumps(config))


def test_a_multi_label_problem_is_multi_label(tmp_path: Path) -> None:
    """The config of the model as it was trained lies beside the adapter; the base model knows nothing of the task."""
    names = {str(i): label for i, label in enumerate(LABELS)}
    _, adapter, base = trained(tmp_path, "bert")
    beside(adapter, problem_type="multi_label_classification", id2label=names)
    built = fmplex.from_peft(adapter, name="v", backbone="m", model=str(base), out=tmp_path / "p")
    head = spec_of(built.out)["head"]
    assert (head["kind"], head["multi_label"], head["labels"]) == ("classification", True, list(LABELS))


@pytest.mark.parametrize(("problem", "outputs"), [("multi_label_classification", 1), ("regression", 3)])
def test_a_problem_that_no_head_answers_is_refused(tmp_path: Path, problem: str, outputs: int) -> None:
    _, adapter, base = trained(tmp_path, "bert", labels=outputs)
    beside(adapter, problem_type=problem)
    with pytest.raises(InvalidInput, match=f"problem_type {problem} with {outputs} output") as caught:
        fmplex.from_peft(adapter, name="v", backbone="m", model=str(base), out=tmp_path / "p")
    assert caught.value.field == "head.kind"


def test_tags_of_a_token_classifier_are_the_spans_of_transformers(tmp_path: Path) -> None:
    """As the pipeline of transformers groups them (`simple`), whose labels are the kinds."""
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    model, adapter, base = trained(tmp_path, "bert", "TOKEN_CLS", labels=len(tags))
    built = fmplex.from_peft(adapter, name="v", backbone="tiny", labels=tags, model=str(base), out=tmp_path / "p")
    engine = open_engine(BackboneSpec(name="tiny", model=str(base)), WorkerSpec(device="cpu"))
    package = read_package(built.out)
    engine.load(engine.fit(package))
    whole = model.merge_and_unload()
    whole.config.id2label = dict(enumerate(tags))
    tokenizer = AutoTokenizer.from_pretrained(base)
    oracle = pipeline("token-classification", model=whole, tokenizer=tokenizer, aggregation_strategy="simple")
    texts = ["the cat sat on the mat in paris", "anna, the dog in the house! cat cat dog", "paris anna anna house on"]
    for text, made in zip(texts, run(engine, *((package.digest, text) for text in texts)), strict=True):
        theirs = [(entity["start"], entity["end"], entity["entity_group"]) for entity in oracle(text)]
        assert [(span["start"], span["end"], span["label"]) for span in made["spans"]] == theirs
        assert len(theirs) > 1
