"""Opening a backbone: what is found out before anything is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from fmplex_broker.errors import InvalidInput
from fmplex_broker.specs.fleet import BackboneSpec, WorkerSpec
from fmplex_worker.backbones.families import FAMILIES
from fmplex_worker.backbones.loading import load_backbone
from fmplex_worker.engine.engine import PackedEngine
from fmplex_worker.engine.opening import open_engine
from tests.support import tiny

Folders = Callable[[str], Path]


def spec(model: Path | str, **more: Any) -> BackboneSpec:
    return BackboneSpec(name=tiny.NAME, model=str(model), **more)


def refused(model: Path | str, says: str, field: str = "backbone.model", **more: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_backbone(spec(model, **more), "cpu")
    assert says in caught.value.message
    assert caught.value.field == field


def test_info(engine_of: Callable[[str], PackedEngine], model_folder: Folders) -> None:
    info = engine_of("roberta").info
    assert (info.name, info.modality, info.hidden, info.device) == (tiny.NAME, "text", tiny.HIDDEN, "cpu")
    assert info.max_tokens == tiny.POSITIONS - 2  # RoBERTa counts from 2
    model = AutoModel.from_pretrained(model_folder("roberta"), add_pooling_layer=False)
    assert info.memory_bytes == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert engine_of("bert").capacity.units == spec("x").pass_units


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_up_to_the_limit(family: str, engine_of: Callable[[str], PackedEngine]) -> None:
    """The longest text that is accepted also runs: positions do not run out."""
    engine = engine_of(family)
    digest = tiny.load(engine, tiny.FEATURES)
    (text,) = tiny.ids(engine.info.max_tokens)
    assert torch.isfinite(tiny.features(engine, (digest, text))[0]).all()


def test_max_tokens(model_folder: Folders) -> None:
    assert load_backbone(spec(model_folder("bert"), max_tokens=20), "cpu").max_tokens == 20
    refused(model_folder("bert"), f"takes {tiny.POSITIONS} tokens at most", "backbone.max_tokens", max_tokens=67)


YARN = {"rope_type": "yarn", "factor": 4.0}
# What checkpoints have in config.json, and in tokenizer_config.json.
STRETCHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as on the hub": ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 66}}, {}),
    "as saved now": ({"rope_parameters": {**YARN, "rope_theta": 10_000.0}}, {}),
    "with the positions it leads to": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 66}, "max_position_embeddings": 264}, {}
    ),
    "with some room already": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 66}, "max_position_embeddings": 80}, {}
    ),
    "with a tokenizer made before": ({"rope_scaling": YARN}, {"model_max_length": 66}),
}  # fmt: skip


def stretched(folder: Path, config: dict[str, Any], tokenizer: dict[str, Any]) -> Path:
    """Save a tiny Llama with changes of its config files."""
    tiny.save_model("llama", folder)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        whole = json.loads((folder / name).read_text())
        if "rope_scaling" in changes:
            del whole["rope_parameters"]
        (folder / name).write_text(json.dumps(whole | changes))
    return folder


@pytest.mark.parametrize("form", STRETCHED)
def test_the_limit_follows_yarn(form: str, tmp_path: Path) -> None:
    engine = open_engine(spec(stretched(tmp_path, *STRETCHED[form])), WorkerSpec(device="cpu"))
    assert engine.info.max_tokens == 4 * tiny.POSITIONS
    (text,) = tiny.ids(200)
    ours = tiny.features(engine, (tiny.load(engine, tiny.FEATURES), text))[0]
    assert tiny.relative(ours, tiny.reference_features(tiny.reference(tmp_path), text)) < 1e-5


def test_max_tokens_can_raise_the_limit_of_scaled_positions(tmp_path: Path) -> None:
    yarn = stretched(tmp_path / "yarn", {"rope_scaling": YARN}, {"model_max_length": 40})
    assert load_backbone(spec(yarn), "cpu").max_tokens == 40, "the tokenizer says less than the model ever took"
    assert load_backbone(spec(yarn, max_tokens=264), "cpu").max_tokens == 264
    assert load_backbone(spec(yarn, max_tokens=300), "cpu").max_tokens == 300
    linear = stretched(tmp_path / "linear", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {})
    assert load_backbone(spec(linear), "cpu").max_tokens == tiny.POSITIONS, "it may be what it leads to"
    assert load_backbone(spec(linear, max_tokens=132), "cpu").max_tokens == 132
    plain = tiny.save_model("llama", tmp_path / "plain")
    refused(plain, f"takes {tiny.POSITIONS} tokens at most", "backbone.max_tokens", max_tokens=67)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(model_folder: Folders, tmp_path: Path, dtype: Any) -> None:
    engine = open_engine(spec(model_folder("bert"), dtype=dtype), WorkerSpec(device="cpu"))
    adapter = tiny.save_adapter(tmp_path, tiny.lora("encoder.layer.0.attention.self.query"))
    digests = [tiny.load(engine, tiny.FEATURES, adapter=adapter), tiny.load(engine, tiny.FEATURES)]
    texts = tiny.ids(9, 9)
    _, plain = tiny.features(engine, *zip(digests, texts, strict=True))
    want = tiny.reference_features(tiny.reference(model_folder("bert")), texts[1])
    assert tiny.relative(plain, want) < 0.1
    assert tiny.run(engine, (tiny.load(engine, tiny.FEATURES), "cat"))[0]["features"].dtype == "float32"


@pytest.mark.parametrize(("family", "task"), [("bert", "ForMaskedLM"), ("llama", "ForCausalLM")])
def test_checkpoint_of_a_task_model(family: str, task: str, model_folder: Folders, tmp_path: Path) -> None:
    """What the hub holds is mostly a model with the head it was trained with; the head is left out."""
    model = AutoModel.from_pretrained(model_folder(family))
    whole = getattr(transformers, f"{family.title()}{task}")(model.config)
    missing = whole.base_model.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == []
    whole.save_pretrained(tmp_path)
    tiny.save_tokenizer(tmp_path)
    engine = open_engine(spec(tmp_path), WorkerSpec(device="cpu"))
    (text,) = tiny.ids(9)
    ours = tiny.features(engine, (tiny.load(engine, tiny.FEATURES), text))[0]
    assert tiny.relative(ours, tiny.reference_features(model.eval(), text)) < 1e-5


def test_not_there(tmp_path: Path) -> None:
    for path in (str(tmp_path / "nothing"), "./nothing", "~/no such place", "not/a/hub-id"):
        refused(path, f"{path}: no such folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "no such folder")
    refused(tmp_path, "config of")


def test_an_adapter_is_no_backbone(tmp_path: Path) -> None:
    tiny.save_adapter(tmp_path, tiny.lora("query"))
    refused(tmp_path, "is an adapter, not a backbone")


def test_family_without_a_row(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    refused(tmp_path, "model type 'gpt_neox' is not served; use one of albert, bert, camembert, deberta-v2, distilbert")


def test_no_tokenizer(model_folder: Folders, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model_folder("bert") / name).read_bytes())
    refused(tmp_path, "tokenizer")


def copy(source: Path, target: Path) -> Path:
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_pickles_are_never_opened(model_folder: Folders, tmp_path: Path) -> None:
    folder = copy(model_folder("bert"), tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "weights of")


def test_missing_weights_are_not_made_up(model_folder: Folders, tmp_path: Path) -> None:
    folder = copy(model_folder("bert"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "lacks 1 weights of a bert, for example 'encoder.layer.1.output.dense.weight'")


def test_truncated_weights(model_folder: Folders, tmp_path: Path) -> None:
    folder = copy(model_folder("bert"), tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "weights of")


def test_code_of_a_repository_is_never_run(model_folder: Folders, tmp_path: Path, monkeypatch: Any) -> None:
    """Neither run nor asked about: a worker has no terminal."""
    folder = copy(model_folder("bert"), tmp_path)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    refused(folder, "no code of its own")
    assert not ran.exists()


def test_chunked_feed_forward(tmp_path: Path) -> None:
    """A config that cuts the row into pieces would put tokens under other tokens' adapters; it is switched off."""
    folder = tiny.save_model("bert", tmp_path / "model", chunk_size_feed_forward=4)
    engine = open_engine(spec(folder), WorkerSpec(device="cpu"))
    module = "encoder.layer.0.intermediate.dense"
    adapter = tiny.save_adapter(tmp_path / "adapter", tiny.lora(module, outputs=48))
    digest = tiny.load(engine, tiny.FEATURES, adapter=adapter)
    tiny.features(engine, (digest, tiny.ids(10)[0]))


def test_no_such_device(model_folder: Folders) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_backbone(spec(model_folder("bert")), "cuda:99")
    assert caught.value.field == "worker.device"
